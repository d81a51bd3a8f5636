"""docs/errors.md shows the exact text of every error: each is provoked here, under the heading that it has there."""

from __future__ import annotations

import ast
import importlib
import io
import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import fixed_logits_model, tiny_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations
from transformers import TextStreamer

import demiurgic
from demiurgic import (
    _C,
    DemiurgicConfig,
    DemiurgicForCausalLM,
    DemiurgicModel,
    GenerationConfig,
    Session,
    cli,
    generate,
    html_view,
    score,
    session,
    show,
    stream,
    text,
)
from demiurgic.loading import SHIPPED_MODELS
from demiurgic.tokenizer import Tokenizer

DOCUMENT = Path(__file__).parents[1] / "docs" / "errors.md"
PACKAGE = Path(demiurgic.__file__).parent

Snippet = Callable[[], object]
INF, NAN = float("inf"), float("nan")


# ---- ways to go wrong -----------------------------------------------------------------------------------------------


def options(**given: Any) -> Snippet:
    return lambda: GenerationConfig(**given)


def call(input_ids: Any = (1, 2), attention_mask: Any = None, **keywords: Any) -> Snippet:
    """generate from a good model of 97 tokens."""
    return lambda: generate(tiny_model(), input_ids, attention_mask, **keywords)


def spoilt(spoil: Callable[[DemiurgicForCausalLM], Any]) -> Snippet:
    """generate from a good model after something was done to it; or from what was made of it."""

    def snippet() -> None:
        model = tiny_model()
        made = spoil(model)
        generate(made if isinstance(made, nn.Module) else model, [1, 2], max_new_tokens=2)

    return snippet


def speculating(spoil: Callable[[DemiurgicForCausalLM], Any], **keywords: Any) -> Snippet:
    """generate with drafts, from a good model after something was done to it."""

    def snippet() -> None:
        model = tiny_model()
        spoil(model)
        generate(model, [1, 2], max_new_tokens=2, **keywords)

    return snippet


def transposed(model: DemiurgicForCausalLM) -> None:
    weight = q_proj(model).weight
    weight.data = weight.data.T.contiguous().T


def speculating_on_the_reference_kernels() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEMIURGIC_KERNELS", "reference")
        call(speculate="ngram")()


def row(logits: list[float], **keywords: Any) -> Snippet:
    """generate from a model that gives these logits at every step."""
    return lambda: generate(fixed_logits_model(logits), [0], seed=0, **keywords)


def in_session(use: Callable[[Session], object]) -> Snippet:
    def snippet() -> None:
        with session(tiny_model()) as opened:
            use(opened)

    return snippet


def prefix(
    spoil: Callable[[Path], object],
    model: Callable[[], DemiurgicForCausalLM] = tiny_model,
    kernels: str = "",
    cache_bytes: int | None = None,
) -> Snippet:
    """load_prefix of a good file, after something was done to it, by a session of `model`."""

    def snippet() -> None:
        file = Path("prefix")
        with session(tiny_model()) as opened:
            opened.save_prefix(file, [5] * 100)
        spoil(file)
        with pytest.MonkeyPatch.context() as patch, session(model(), cache_bytes) as opened:
            patch.setenv("DEMIURGIC_KERNELS", kernels)
            opened.load_prefix(file)

    return snippet


def hooked(keyword: str, value: Any) -> Snippet:
    """generate of two rows from a good model of 97 tokens, with a hook that returns `value`."""

    def hook(input_ids: Any, scores: Any) -> Any:
        return value

    return lambda: generate(tiny_model(), [[1], [2]], seed=0, **{keyword: hook})


def stock(name: str, *arguments: Any, beside: dict[str, Any] | None = None, **keywords: Any) -> Snippet:
    """generate of two rows with a stock processor or criterion of Hugging Face, and options beside it."""

    def snippet() -> None:
        module, argument = (
            ("stopping_criteria", "stopping_criteria")
            if name.endswith("Criteria")
            else ("logits_process", "logits_processor")
        )
        kind = getattr(importlib.import_module(f"transformers.generation.{module}"), name)
        generate(tiny_model(), [[1], [2]], **{argument: [kind(*arguments, **keywords)]}, **(beside or {}))

    return snippet


def generating_inside_of_a_hook() -> None:
    model = tiny_model()
    generate(model, [1], logits_processor=lambda input_ids, scores: generate(model, input_ids, max_new_tokens=1))


def loaded(spoil: Callable[[Path], Any], **keywords: Any) -> Snippet:
    """from_pretrained of a good folder, checkpoint, after something was done to it."""

    def snippet() -> None:
        folder = Path("checkpoint")
        shutil.rmtree(folder, ignore_errors=True)
        tiny_model().save_pretrained(folder)
        spoil(folder)
        DemiurgicForCausalLM.from_pretrained(folder, **keywords)

    return snippet


def configured(**changes: Any) -> Snippet:
    """from_pretrained of a folder of Hugging Face's, with these keys in its config.json."""
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_attention_heads": 4}
    return loaded(lambda folder: (folder / "config.json").write_text(json.dumps(llama | changes)))


def config(**fields: Any) -> Snippet:
    return lambda: DemiurgicConfig(**fields)


def forward(*arguments: Any, **keywords: Any) -> Snippet:
    return lambda: tiny_model()(*arguments, **keywords)


def tokenizer(use: Callable[[Tokenizer], object]) -> Snippet:
    return lambda: use(Tokenizer(SHIPPED_MODELS["tiny"]))


def command(line: str, stdin: bytes = b"") -> Snippet:
    """The command line in this process; what it prints on standard error, and its exit code."""

    def snippet() -> str:
        errors = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(errors), redirect_stdout(io.StringIO()):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = cli.main(shlex.split(line.rpartition(" | ")[2])[1:])
        return f"$ {line}\n{errors.getvalue()}exit code {code}"

    return snippet


def imported(without: str = "", torch_version: str = "") -> Snippet:
    """import demiurgic in a Python that lacks a module, or has another torch."""

    def snippet() -> str:
        Path("torch.py").write_text(f"__version__ = {torch_version!r}\nclass version: cuda = None\n")
        change = "sys.path.insert(0, '.')" if torch_version else f"sys.modules[{without!r}] = None"
        code = f"import sys; sys.path.remove(''); {change}; import demiurgic"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        Path("torch.py").unlink()
        return run.stderr.splitlines()[-1]

    return snippet


def edit(folder: Path, **changes: Any) -> None:
    """Changes keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def store(folder: Path, **changes: Any) -> None:
    """Changes tensors of model.safetensors; None takes one out."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")


def pickled(folder: Path, content: Any, keep: int | None = None) -> None:
    """pytorch_model.bin in place of model.safetensors, cut after `keep` bytes."""
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    cut(folder / "pytorch_model.bin", keep)


def cut(path: Path, keep: int | None) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def indexed(folder: Path, index: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


class Code:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


class Subclass(DemiurgicForCausalLM):
    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return super().forward(*arguments, **keywords)


class Adapter(nn.Module):
    """As adapters wrap a projection."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Any) -> Any:
        return self.base(x)


def q_proj(model: DemiurgicForCausalLM) -> Any:
    return model.model.layers[0].self_attn.q_proj


def with_adapter(model: DemiurgicForCausalLM) -> None:
    model.model.layers[0].self_attn.q_proj = Adapter(q_proj(model))


def cast(name: str, dtype: torch.dtype) -> Callable[[DemiurgicForCausalLM], None]:
    def change(model: DemiurgicForCausalLM) -> None:
        parameter = model.get_parameter(name)
        parameter.data = parameter.data.to(dtype)

    return change


def assigned(name: str, value: Any) -> Callable[[DemiurgicForCausalLM], None]:
    """Puts a tensor, or None, in the place of a parameter."""

    def change(model: DemiurgicForCausalLM) -> None:
        owner, _, last = name.rpartition(".")
        parameter = None if value is None else nn.Parameter(value, requires_grad=False)
        setattr(model.get_submodule(owner), last, parameter)

    return change


def hook_everywhere() -> None:
    handle = register_module_forward_hook(lambda *_: None)
    try:
        spoilt(lambda model: None)()
    finally:
        handle.remove()


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(shard: Callable[[nn.Module], Any]) -> Snippet:
    def snippet() -> None:
        with one_process(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spoilt(shard)()

    return snippet


def partitioned_by_zero(model: DemiurgicForCausalLM) -> None:
    model.get_parameter("lm_head.weight").ds_id = 0  # type: ignore[attr-defined]  # DeepSpeed's mark of such a parameter


def with_nan(model: DemiurgicForCausalLM) -> None:
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] = NAN


def with_overflow(model: DemiurgicForCausalLM) -> None:
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[0] = 3e38


def on_two_devices(model: DemiurgicForCausalLM) -> None:
    with FakeTensorMode():  # tensors that say they are on a device which this machine need not have
        elsewhere = torch.empty(97, 32, device="cuda")
    assigned("lm_head.weight", elsewhere)(model)


def saved_with_another_config() -> None:
    model = tiny_model()
    model.config.vocab_size = 50
    model.save_pretrained("there")


def without_special_tokens() -> Tokenizer:
    Path("plain").mkdir(exist_ok=True)
    Backend(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save("plain/tokenizer.json")
    return Tokenizer("plain")


def word_pieces() -> Backend:
    backend = Backend(models.WordPiece({"a": 0}))
    backend.decoder = decoders.WordPiece()
    return backend


def shipped_tokenizer_with_config(text: str) -> None:
    shutil.copy(SHIPPED_MODELS["tiny"] / "tokenizer.json", "tokenizer.json")
    Path("config.json").write_text(text)
    Tokenizer(".")


def broken_checkpoint() -> None:
    """A model whose head holds a NaN, with the shipped tokenizer, in the folder broken."""
    model = DemiurgicForCausalLM.from_pretrained(SHIPPED_MODELS["tiny"])
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[3] = NAN
    model.save_pretrained("broken")
    shutil.copy(SHIPPED_MODELS["tiny"] / "tokenizer.json", "broken")


# ---- the gallery: heading in the document, and what gives each of the lines under it --------------------------------

GALLERY: dict[str, list[Snippet]] = {
    # options
    "Unknown option": [
        options(temprature=0.5),
        options(do_sampling=True),
        options(wibble=1),
        lambda: setattr(GenerationConfig(), "topk", 5),
        lambda: GenerationConfig.from_dict({1: 2}),
    ],
    "Value of a wrong type": [
        options(max_new_tokens="64"),
        options(top_k=5.0),
        options(temperature="warm"),
        options(do_sample=1),
        options(do_sample=None),
        options(num_return_sequences=None),
        options(eos_token_id="</s>"),
        options(bad_token_ids=[1, "a"]),
        options(logit_bias=[5]),
        options(logit_bias={"a": 1}),
        options(seed=1.5),
        options(stop=b"end"),
        options(stop=["a", 5]),
        options(stop_at=True),
        options(top_logprobs_mode=1),
        options(top_logprobs_mode=None),
    ],
    "Value out of range": [
        options(max_new_tokens=-1),
        options(max_length=0),
        options(min_length=-1),
        options(min_new_tokens=-1),
        options(temperature=-1),
        options(top_k=-1),
        options(top_p=1.5),
        options(typical_p=0),
        options(min_p=NAN),
        options(repetition_penalty=0),
        options(repetition_context_size=0),
        options(frequency_penalty=-INF),
        options(presence_penalty=10001),
        options(no_repeat_ngram_size=-2),
        options(num_return_sequences=0),
        options(bad_token_ids=[3, -1]),
        options(logit_bias={-1: 2.0}),
        options(logit_bias={1: -INF}),
        options(seed=-1),
        options(top_logprobs=1001),
        options(top_logprobs_mode="cooked"),
        options(max_new_tokens=2**63),
        options(stop=["a", ""]),
        options(stop="\ud800"),
        options(stop_at="method"),
        options(stop_on_repetition=1),
        options(repetition_min_tokens=0),
        options(speculate="draft"),
        options(max_draft_tokens=0),
    ],
    "Options that contradict each other": [
        options(max_new_tokens=None),
        options(min_length=10, max_length=5),
        options(min_new_tokens=10, max_new_tokens=5),
    ],
    "Token ids that the model does not have": [
        call(eos_token_id=97),
        call(pad_token_id=97),
        call(stop_token_ids=[97]),
        call(bad_token_ids=[97]),
        call(logit_bias={97: 1}),
        stock("EosTokenCriteria", 99999),
    ],
    "Seeds that fit neither prompts nor rows": [call([[1], [2]], num_return_sequences=2, seed=[1, 2, 3])],
    "Something else than a GenerationConfig": [
        call(generation_config={"top_k": 5}),
        lambda: GenerationConfig.from_dict([("top_k", 5)]),
        lambda: GenerationConfig.from_json("[1]"),
    ],
    "generate's own keywords": [
        call(max_running=0),
        call(max_step_tokens=0.5),
        call(cache_bytes=-1),
        call(exact=0),
        call(return_dict_in_generate="yes"),
        call(progress=1),
        call(max_runing=8),
    ],
    "Options that look at text": [
        call(stop="a"),
        call(stop_at="function"),
        call(stop="a", stop_strings="a"),
        call(max_new_tokens="auto"),
        call(max_new_tokens="auto", max_length=50),
        call([[1] * 256], max_new_tokens="auto", tokenizer=_C.TokenBytes(["a"] * 97, [], "raw")),
        call(stop="a", tokenizer="gpt2"),
        lambda: call(stop="a", tokenizer=word_pieces())(),
    ],
    "Helpers of demiurgic.text": [
        lambda: text.extract_first_code_block(b"x"),  # type: ignore[arg-type]
        lambda: text.suggest_max_new_tokens("x", "file"),
        lambda: text.repetition_score([1], 0),
        lambda: text.repetition_score([1], 1.5),  # type: ignore[arg-type]
        lambda: text.repetition_score(5),
    ],
    "Hooks beside options": [
        call(logits_processor=3),
        stock("TemperatureLogitsWarper", 0.5, beside={"temperature": 0.7}),
        stock("EosTokenCriteria", 5, beside={"eos_token_id": 6}),
        stock("MaxLengthCriteria", 50, beside={"max_new_tokens": "auto"}),
        stock("UnbatchedClassifierFreeGuidanceLogitsProcessor", 1.5, None),
        stock("PrefixConstrainedLogitsProcessor", lambda row, tokens: [1], 2),
        stock("RepetitionPenaltyLogitsProcessor", 1.5, prompt_ignore_length=torch.tensor([1])),
    ],
    "Numbers that would not be returned": [
        call(top_logprobs=5),
        call(prompt_logprobs=True),
        call(entropy=True),
        command('demiurgic generate "x" --top-logprobs 3'),
    ],
    "Speculation": [
        call(speculate="ngram", draft_model=tiny_model()),
        speculating(transposed, draft_model=tiny_model()),
        speculating_on_the_reference_kernels,
        call(speculate="ngram", exact=False),
        call(draft_model=tiny_model(vocab_size=50)),
        call(draft_model="tiny"),
    ],
    "Streams and streamers": [
        lambda: stream(tiny_model(), [1, 2], tokenizer="tiny"),
        lambda: stream(tiny_model(), [1, 2], streamer=None),
        lambda: stream(tiny_model(), [1, 2], return_dict_in_generate=True),
        lambda: stream(tiny_model(), [1, 2], progress=True),
        lambda: stream(tiny_model(), [1, 2]).result(),
        lambda: show(stream(tiny_model(), [1, 2])),
        lambda: show(3),  # type: ignore[arg-type]
        call(streamer="yes"),
        call([[1], [2]], streamer=TextStreamer(Tokenizer(SHIPPED_MODELS["tiny"]))),
        lambda: html_view(list(stream(tiny_model(), [1, 2], max_new_tokens=1)), Tokenizer(SHIPPED_MODELS["tiny"])),  # type: ignore[arg-type]
    ],
    # prompts and masks
    "Prompts of a wrong form": [
        call([]),
        call(torch.zeros(2, 0, dtype=torch.long)),
        call(torch.zeros(1, 2, 3, dtype=torch.long)),
        call([[[1, 2]], [[3]]]),
        call(torch.tensor([0.5])),
        call("def f():"),
        call([[1], ["a"]]),
        call(torch.zeros(1, 2, dtype=torch.long, device="meta")),
    ],
    "Empty prompt": [call([[1, 2], []]), call(torch.tensor([[1, 2]]), torch.tensor([[0, 0]]))],
    "Ids outside the vocabulary": [call([[1, 2], [3, 97]]), call([-1])],
    "Masks": [
        call(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 2)),
        call([[1], [2, 3]], torch.ones(2, 2)),
        call([[1], [2, 3]], [[1], [1, 1]]),
        call([[1, 2, 3]], [[1, 0, 1]]),
        call([[1, 2, 3]], [[0, 2, 1]]),
        call([[1, 2, 3]], torch.ones(1, 3, device="meta")),
        call([[1, 2, 3]], "110"),
    ],
    "Warning: padding that may be tokens": [
        lambda: generate(tiny_model(pad_token_id=2, eos_token_id=2), [[5, 2], [6, 7]], seed=0, max_new_tokens=1)
    ],
    "Warning: past the context": [
        call(max_new_tokens=300, stop_token_ids=list(range(97)), seed=0),
        lambda: score(tiny_model(), [1] * 300),
    ],
    # sessions
    "Use of a session": [
        in_session(lambda session: (session.close(), session.generate([1]))),
        in_session(lambda session: session.generate([1], cache_bytes=1)),
        in_session(lambda session: session.generate([1], session=session)),
        in_session(lambda session: generate(tiny_model(), [1], session=session)),
        call(session="s"),
        in_session(pickle.dumps),
    ],
    "Prefixes in files": [
        prefix(lambda file: None, lambda: tiny_model(rms_norm_eps=1e-5)),
        prefix(lambda file: None, lambda: tiny_model(num_hidden_layers=3)),
        prefix(lambda file: None, kernels="reference"),
        prefix(lambda file: save_file({"a": torch.ones(1)}, file)),
        prefix(lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?")),
        prefix(lambda file: file.write_bytes(file.read_bytes()[:200])),
        in_session(lambda session: session.load_prefix("nowhere")),
        in_session(lambda session: session.save_prefix("nowhere/file", [1])),
        in_session(lambda session: session.save_prefix("file", [[1], [2]])),
    ],
    # room
    "No room for the cache": [
        call(cache_bytes=10_000, max_new_tokens=200),
        lambda: score(tiny_model(), [1] * 200, cache_bytes=10_000),
        prefix(lambda file: None, cache_bytes=12_288),
    ],
    # the model
    "Not a model": [
        spoilt(lambda model: nn.Linear(2, 2)),
        lambda: generate("gpt2", [1]),  # type: ignore[arg-type]
        lambda: generate(DemiurgicModel(tiny_model().config), [1]),
    ],
    "No numbers in the parameters": [
        spoilt(lambda model: model.to("meta")),
        spoilt(lambda model: [model.lm_head.to("meta")]),
    ],
    "Parameters on several devices": [spoilt(on_two_devices)],
    "Dtypes": [
        spoilt(lambda model: model.double()),
        spoilt(lambda model: [model.lm_head.to(torch.bfloat16)]),
    ],
    "Shapes that are not the config's": [
        spoilt(assigned("model.norm.weight", torch.ones(31))),
        spoilt(assigned("model.norm.weight", None)),
    ],
    "Forward hooks": [
        spoilt(lambda model: model.lm_head.register_forward_hook(lambda *_: None)),
        spoilt(lambda model: model.model.register_forward_pre_hook(lambda *_: None)),
        hook_everywhere,
    ],
    "A forward of another's": [
        spoilt(lambda model: Subclass(model.config)),
        spoilt(lambda model: setattr(model.lm_head, "forward", lambda x: x)),
    ],
    "Adapters, parametrizations, quantized layers": [
        spoilt(with_adapter),
        spoilt(lambda model: [parametrizations.weight_norm(q_proj(model))]),
        spoilt(assigned("lm_head.weight", torch.eye(97, 32).to_sparse())),
    ],
    "Sharded parameters": [
        sharded(lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu"))),
        sharded(fully_shard),
        spoilt(partitioned_by_zero),
    ],
    # rows
    "A row ends in an error": [
        spoilt(with_nan),
        spoilt(with_overflow),
        row([3e38, 0.0, 0.0], repetition_penalty=1e-4, do_sample=False),
        row([1.0, 2.0, 3.0], bad_token_ids=[0, 1, 2]),
        lambda: score(fixed_logits_model([0.0, NAN]), [0, 1]),
    ],
    "What hooks return": [
        hooked("logits_processor", None),
        hooked("logits_processor", torch.zeros(2, 97).half()),
        hooked("logits_processor", torch.zeros(97)),
        hooked("logits_processor", torch.full((2, 97), NAN)),
        hooked("logits_processor", torch.full((2, 97), -INF)),
        hooked("stopping_criteria", 0),
        hooked("stopping_criteria", torch.tensor([True])),
    ],
    "Generating inside of a hook": [lambda: generating_inside_of_a_hook()],
    # checkpoints
    "Files that are not there": [
        loaded(shutil.rmtree),
        loaded(lambda folder: (folder / "config.json").unlink()),
        loaded(lambda folder: (folder / "model.safetensors").unlink()),
        loaded(lambda folder: indexed(folder, {"weight_map": {"a": "model-00001-of-00002.safetensors"}})),
    ],
    "demiurgic.load": [
        lambda: demiurgic.load("tinny"),
        lambda: [tiny_model().save_pretrained("checkpoint"), demiurgic.load("checkpoint")],
        lambda: [Path("weights.bin").write_text(""), demiurgic.load("weights.bin")],
        lambda: demiurgic.load(5),  # type: ignore[arg-type]
        lambda: demiurgic.load("tiny", device="gpu"),
    ],
    "Truncated and damaged files": [
        loaded(lambda folder: cut(folder / "model.safetensors", 1000)),
        loaded(lambda folder: pickled(folder, load_file(folder / "model.safetensors"), keep=1000)),
        loaded(lambda folder: cut(folder / "config.json", 20)),
        loaded(lambda folder: (folder / "config.json").write_text("[1]")),
        loaded(lambda folder: indexed(folder, {})),
        loaded(lambda folder: indexed(folder, {"weight_map": {"a": "../model.safetensors"}})),
    ],
    "Pickles that are no state dict": [
        loaded(lambda folder: pickled(folder, {"step": 3})),
        loaded(lambda folder: pickled(folder, {"model.norm.weight": Code()})),
    ],
    "Missing, unexpected and mis-shaped tensors": [
        loaded(lambda folder: store(folder, **{"model.norm.weight": None})),
        loaded(lambda folder: store(folder, extra=torch.ones(1))),
        loaded(lambda folder: store(folder, **{"model.norm.weight": torch.ones(31)})),
        loaded(lambda folder: edit(folder, num_hidden_layers=3)),
    ],
    "Tied weights that differ": [loaded(lambda folder: edit(folder, tie_word_embeddings=True))],
    "Quantized tensors": [
        loaded(lambda folder: store(folder, **{"model.norm.weight": torch.ones(32, dtype=torch.int8)}))
    ],
    "Unknown keys in config.json": [
        configured(qk_norm=True, hiden_size=32),
        loaded(lambda folder: edit(folder, hiden_size=32)),
    ],
    "Variants that are not implemented": [
        configured(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        configured(rope_scaling={"rope_type": "longrope", "factor": 2.0}),
        configured(rope_scaling={"rope_type": "spiral"}),
        configured(rope_scaling="linear"),
        configured(hidden_act="gelu"),
        configured(sliding_window=4096),
        configured(model_type="qwen2", architectures=None),
        configured(architectures=["GPT2LMHeadModel"]),
    ],
    "dtype and device of from_pretrained": [loaded(lambda folder: None, dtype="int8")],
    "Saving": [
        lambda: tiny_model().save_pretrained("there", max_shard_size="5 apples"),
        lambda: [Path("file").write_text(""), tiny_model().save_pretrained("file")],
        lambda: tiny_model().to("meta").save_pretrained("there"),
        saved_with_another_config,
    ],
    # config, forward, tokenizer
    "DemiurgicConfig": [
        config(hiden_size=32),
        config(hidden_size="32"),
        config(hidden_size=0),
        config(hidden_size=30, num_attention_heads=4),
        config(num_attention_heads=4, num_key_value_heads=3, hidden_size=32),
        config(hidden_size=12, num_attention_heads=4),
        config(activation_function="mish"),
        config(attention_dropout=1.0),
        config(rope_theta="10000"),
        config(attention_bias=1),
        config(fim_tokens=[3, 4, 5]),
        config(pad_token_id=32000),
        config(model_type="llama"),
        lambda: DemiurgicForCausalLM({"hidden_size": 32}),  # type: ignore[arg-type]
    ],
    "rope_scaling": [
        config(rope_scaling="yarn"),
        config(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        config(rope_scaling={"rope_type": "linear", "factor": 2.0, "beta_fast": 32}),
        config(rope_scaling={"rope_type": "linear", "factor": 2.0, "type": "yarn"}),
        config(rope_scaling={"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}),
        config(rope_scaling={"rope_type": "yarn", "factor": 4.0, "truncate": 1}),
    ],
    "forward": [
        forward(),
        forward(torch.tensor([[1.5]])),
        forward(torch.tensor([1])),
        forward(torch.tensor([[97]])),
        forward(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 3)),
        forward(torch.tensor([[1, 2]]), attention_mask=torch.tensor([[1, 2]])),
        forward(torch.tensor([[1, 2]]), labels=torch.tensor([[1]])),
        forward(inputs_embeds=torch.zeros(1, 2, 31)),
        forward(torch.tensor([[1, 2]]), position_ids=torch.tensor([[1]])),
        forward(torch.tensor([[1]]), past_key_values=[(torch.zeros(1, 2, 1, 8),) * 2]),
        forward(torch.tensor([[1]]), past_key_values=[(torch.zeros(1, 4, 1, 8),) * 2] * 2),
    ],
    "Changing embedding and head": [
        lambda: tiny_model().resize_token_embeddings(0),
        lambda: DemiurgicModel(tiny_model().config).set_output_embeddings(nn.Linear(32, 97)),
    ],
    "Tokenizer": [
        lambda: Tokenizer("nowhere"),
        lambda: [Path("tokenizer.json").write_text("{}"), Tokenizer(".")],
        lambda: shipped_tokenizer_with_config("["),
        lambda: shipped_tokenizer_with_config("[]"),
        tokenizer(lambda t: t.encode(5)),  # type: ignore[arg-type]
        tokenizer(lambda t: t.encode(["a", 5])),  # type: ignore[list-item]
        tokenizer(lambda t: t.encode("\udcff")),
        tokenizer(lambda t: t.decode([100_000])),
        tokenizer(lambda t: t.decode([0.5])),  # type: ignore[list-item]
        tokenizer(lambda t: t.fim("a", ["b"])),  # type: ignore[arg-type]
        tokenizer(lambda t: t.fim(["a"], ["b", "c"])),
        lambda: without_special_tokens().fim("a", "b"),
        lambda: without_special_tokens().encode("a", add_bos=True),
    ],
    # import
    "Another torch than the one built for": [imported(torch_version="2.11.0")],
    "No torch, or no compiled extension": [imported(without="torch"), imported(without="demiurgic._C")],
    # command line
    "Mistakes on the command line": [
        command('demiurgic generate "def f():" --temprature 1'),
        command('demiurgic generate "def f():" --top-k many'),
        command('demiurgic generate "def f():" --top-p 1.5'),
        command('demiurgic generate "def f():" --logit-bias 5'),
        command('demiurgic generate "def f():" --preset balanced'),
        command('demiurgic generate "def f():" --model nowhere'),
        command('demiurgic generate "def f():" --device gpu'),
        command("cat photo.jpg | demiurgic generate -", stdin=b"\xff\xd8\xff"),
        command("demiurgic genrate x"),
        command("demiurgic generate"),
    ],
    "A generation that fails": [
        lambda: [broken_checkpoint(), command('demiurgic generate "def f():" --model broken')()][1],
    ],
}


# ---- the document ---------------------------------------------------------------------------------------------------


def entries() -> dict[str, str]:
    """The first block of text under each heading of the third level."""
    text = DOCUMENT.read_text()
    sections = re.split(r"^### +(.+)\n", text, flags=re.MULTILINE)[1:]
    found = {}
    for heading, section in zip(sections[::2], sections[1::2], strict=True):
        block = re.search(r"^```text\n(.*?)^```$", section.split("\n## ")[0], flags=re.MULTILINE | re.DOTALL)
        assert heading not in found, f"{heading!r} stands twice"
        assert block, f"there is no text under {heading!r}"
        found[heading] = block[1].rstrip("\n")
    return found


def text_of(snippet: Snippet) -> str:
    """What a user reads: `Type: message` of the exception, or of the warning; or what the snippet returns."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            said = snippet()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    if isinstance(said, str):
        return said
    assert warned, "nothing was raised and nobody warned"
    warning = warned[0]
    return f"{warning.category.__name__}: {warning.message}"


def test_every_entry_has_its_snippets_and_every_snippet_an_entry() -> None:
    assert list(entries()) == list(GALLERY)


@pytest.mark.native
@pytest.mark.parametrize("heading", GALLERY)
def test_the_text_is_the_one_that_comes(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = "\n".join(text_of(snippet) for snippet in GALLERY[heading])
    written = entries()[heading]
    if not re.fullmatch(re.escape(written).replace("…", ".+"), said):
        assert written == said  # shows the difference


# Errors raised elsewhere than in this process, or before the sentence is made.
NOT_FOLLOWED = {"build_check.py", "cli.py", "info.py"}
NEVER_RAISED = {
    "raise NotImplementedError",  # of abstract methods
    "raise ValueError(f'rope_scaling type {other!r} is not supported.')",  # the config refuses it before
}


def lines_run(snippets: list[Snippet]) -> set[tuple[str, int]]:
    """Files of the package and the lines that the snippets execute of them."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(str(PACKAGE)):
            return None
        lines.add((path, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for snippet in snippets:
            text_of(snippet)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.native
def test_every_error_of_the_package_is_in_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    followed = [entry for heading, entry in GALLERY.items() if "torch" not in heading]  # not those of imports
    reached = lines_run([snippet for snippets in followed for snippet in snippets])
    for path in sorted(set(PACKAGE.glob("*.py")) - {PACKAGE / name for name in NOT_FOLLOWED}):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Raise) and node.exc and ast.unparse(node) not in NEVER_RAISED:
                assert (str(path), node.lineno) in reached, f"{path.name}, line {node.lineno}: {ast.unparse(node)}"
