"""Every operation of the reference path has a kernel on MPS, where no machine with MPS is at hand to try."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from models import fixed_logits_model, tiny_model
from mps_coverage import Call, KernelTable, is_waited_for, names, problems, record, transfers, waits

from demiurgic import _C, DemiurgicForCausalLM, GenerationConfig
from demiurgic.live_weights import live_weights

SOURCES = Path(__file__).parents[1] / "csrc"
TABLE = KernelTable()

# Together they set every option. Those of a call run in one batch, so that its rows differ in what is on.
# fmt: off
MANY: dict[str, Any] = {
    "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "do_sample": True, "seed": 3,
    "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1, "penalize_prompt": False,
    "repetition_context_size": 5, "no_repeat_ngram_size": 2, "logit_bias": {1: 2.0, 5: -1.0}, "bad_token_ids": [3],
    "eos_token_id": 7, "stop_token_ids": [8], "pad_token_id": 0, "min_new_tokens": 2, "min_length": 17,
    "max_new_tokens": 3, "max_length": 19, "num_return_sequences": 2,
}
# fmt: on
CALLS: list[dict[str, Any]] = [
    MANY,
    {"max_new_tokens": 2, "typical_p": 0.5, "use_cache": False},
    {"max_new_tokens": 2, "do_sample": False},
    {"max_new_tokens": 2, "stop_on_repetition": 2, "repetition_min_tokens": 2, "trim_repetition": True},
    {"max_new_tokens": 2, "stop": ["a"], "include_stop": True, "stop_at": "function"},
    {"max_new_tokens": 2, "top_logprobs": 3, "top_logprobs_mode": "both", "entropy": True, "prompt_logprobs": True},
    {"max_new_tokens": 1, "bad_token_ids": list(range(97))},  # nothing is allowed
]
PROMPTS = [list(range(10, 28)), [4, 5] * 7]  # more than a block of the cache, and less
CACHE_OF_4_BLOCKS = 4 * 2 * 2 * 16 * 2 * 8 * 4  # layers, keys and values, positions, heads, head_dim, bytes


# What the engine calls on the way of a token, a score and a prefix, from C++, or from Python in a hook.
# fmt: off
OPERATIONS = {
    # matrix products, and the one lookup that is like them
    "linear", "bmm", "embedding",
    # views, which cost the host alone
    "expand", "expand_as", "flatten.using_ints", "narrow", "permute", "reshape", "select.int",
    "split_with_sizes", "squeeze.dim", "transpose.int", "unsqueeze", "view", "view.dtype",
    # element by element
    "abs", "add.Scalar", "add.Tensor", "add_.Tensor", "bitwise_and.Scalar", "bitwise_or.Scalar",
    "bitwise_right_shift.Tensor_Scalar", "bitwise_xor.Scalar", "clamp_max", "clamp_min", "div.Tensor", "eq.Scalar",
    "eq.Tensor", "floor", "floor_divide.Scalar", "ge.Scalar", "gelu", "gt.Scalar", "gt.Tensor", "isnan", "le.Tensor",
    "logical_and", "logical_not", "logical_or", "lt.Scalar", "lt.Tensor", "masked_fill.Scalar", "mul.Scalar",
    "mul.Tensor", "neg", "relu", "remainder.Scalar", "rsqrt", "silu", "sub.Scalar", "sub.Tensor", "sub_.Tensor",
    "where.self",
    # rows to numbers; cumsum and sort of short rows only
    "amax", "amin", "any.dim", "cumsum", "mean.dim", "softmax.int", "sort.stable", "sum.dim_IntList", "topk",
    # elements to other places
    "cat", "clone", "copy_", "gather", "index_put_", "index_select", "scatter_.src", "scatter_add_",
    # new tensors
    "arange", "empty.memory_format", "empty_like", "full_like", "zeros", "zeros_like", "fill_.Scalar",
    # between dtypes; between the host and the device
    "to.dtype", "to.dtype_layout",
    # the rotary table, once for a thousand positions
    "arange.start", "cos", "sin",
    # fingerprints and prefixes of sessions
    "bitwise_xor.Tensor", "constant_pad_nd", "full", "index_copy_", "stack", "sum", "unbind.int",
    # which parameter is not finite, once a row has ended by it
    "all", "isfinite", "item",
}
# fmt: on


def request(
    prompts: list[list[int]], hooks: _C.Hooks | None = None, *, interruptible: bool = False, **options: Any
) -> _C.Request:
    config = GenerationConfig(**({"eos_token_id": []} | options))
    seeds = list(range(len(prompts) * config.num_return_sequences))
    letters = _C.TokenBytes(["a"] * 97, [], "raw") if config.stop else None
    wanted = {"max_running": 8, "want_logprobs": True, "token_bytes": letters, "hooks": hooks}
    return _C.Request(prompts=prompts, config=config, seeds=seeds, interruptible=interruptible, **wanted)


def finish(*calls: _C.Call) -> list[str]:
    """Runs the calls to their ends; why each row ended."""
    while any(call.advance() for call in calls):
        pass
    return [call.finish_reason(row) for call in calls for row in range(call.num_rows)]


def all_options(engine: _C.Engine) -> None:
    calls = [engine.add(request(PROMPTS, **options)) for options in CALLS]  # each makes the cache grow
    assert finish(*calls)[-2:] == ["error"] * 2


def three_tokens(engine: _C.Engine) -> None:
    assert finish(engine.add(request(PROMPTS, max_new_tokens=3))) == ["length"] * 2


PLAIN = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1, "bad_token_ids": [3]}


def ahead(engine: _C.Engine) -> None:
    """Steps that the device could make one after the other, with all that it has to know for it."""
    calls = [request(PROMPTS, max_new_tokens=4, **PLAIN), request([[1]], max_new_tokens=3, typical_p=0.5)]
    assert finish(*[engine.add(call) for call in calls]) == ["length"] * 3


def hooked(engine: _C.Engine) -> None:
    hooks = _C.Hooks(
        process=lambda input_ids, scores, rows, lengths: scores,
        stop=lambda input_ids, scores, rows, lengths: [len(row) < 0 for row in input_ids],
        prompt_width=18,
        padding=0,
    )
    told = {"top_logprobs": 3, "top_logprobs_mode": "both"}
    calls = [request(PROMPTS, hooks, max_new_tokens=2, **told), request(PROMPTS, max_new_tokens=2)]
    assert finish(*[engine.add(call) for call in calls]) == ["length"] * 4


def preempted(engine: _C.Engine) -> None:
    assert finish(engine.add(request([[1] * 15, [2] * 15, [3] * 15], max_new_tokens=6))) == ["length"] * 3
    assert engine.counters()["num_preemptions"] > 0


def scored(engine: _C.Engine) -> None:
    assert [len(logprobs) for logprobs, _ in engine.score(PROMPTS, 8)] == [17, 13]


def kept_prefixes(engine: _C.Engine) -> None:
    """What a session does: a fingerprint, a row that starts from a kept prefix, a prefix read and written."""
    fingerprint = engine.fingerprint()
    engine.keep_prefixes_of(fingerprint)
    for _ in range(2):
        finish(engine.add(request([[1] * 20], max_new_tokens=3)))
    assert engine.counters()["num_reused_tokens"] == 19
    prefix = engine.read_prefix([1] * 20, fingerprint)
    engine.clear_prefixes()
    engine.write_prefix([1] * 20, *prefix, fingerprint)
    assert engine.counters()["num_kept_tokens"] == 20


def not_finite(engine: _C.Engine) -> None:
    assert finish(engine.add(request([[1]], max_new_tokens=1))) == ["error"]


def mixed(model: DemiurgicForCausalLM) -> DemiurgicForCausalLM:
    model.to(torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.float()
    return model


def with_nan(model: DemiurgicForCausalLM) -> DemiurgicForCausalLM:
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    return model


BIASED = {"attention_bias": True, "mlp_bias": True}
# model, most bytes of its cache, what runs on it
RECORDED: dict[str, tuple[Callable[[], DemiurgicForCausalLM], int | None, Callable[[_C.Engine], None]]] = {
    "float32, gated, grouped-query": (tiny_model, None, all_options),
    "float32, gelu, biased, tied": (
        lambda: tiny_model(activation_function="gelu", tie_word_embeddings=True, **BIASED),
        None,
        three_tokens,
    ),
    "bfloat16, relu, biased": (
        lambda: tiny_model(activation_function="relu", **BIASED).to(torch.bfloat16),
        None,
        three_tokens,
    ),
    "bfloat16, gated, norms in float32": (lambda: mixed(tiny_model(**BIASED)), None, three_tokens),
    "float16, silu": (lambda: tiny_model(activation_function="silu").to(torch.float16), None, three_tokens),
    "steps ahead": (tiny_model, None, ahead),
    "hooks": (tiny_model, None, hooked),
    "preempted": (tiny_model, CACHE_OF_4_BLOCKS, preempted),
    "scored": (tiny_model, None, scored),
    "kept prefixes": (tiny_model, None, kept_prefixes),
    "kept prefixes, bfloat16": (lambda: tiny_model().to(torch.bfloat16), None, kept_prefixes),
    "a parameter with NaN": (lambda: with_nan(tiny_model()), None, not_finite),
}


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Call]]:
    """By model, the operations of the engine: from the first call to the last token."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DEMIURGIC_KERNELS", "reference")
        calls = {}
        for name, (model, cache_bytes, run) in RECORDED.items():
            keeps = run is kept_prefixes
            environment.setenv("DEMIURGIC_STEPS", "ahead" if run is ahead else "simple")
            engine = _C.Engine(live_weights(model()), cache_bytes, 16, keeps)  # prompts go in chunks of 16
            calls[name] = record(lambda engine=engine, run=run: run(engine))
        return calls


def every_call(recorded: dict[str, list[Call]]) -> list[Call]:
    return list(chain.from_iterable(recorded.values()))


@pytest.mark.parametrize("name", RECORDED)
def test_every_operation_of_the_engine_has_a_kernel_on_mps(recorded, name):
    assert not problems(recorded[name], TABLE)


def test_every_option_is_on_in_some_call():
    drafts = {"speculate", "max_draft_tokens"}  # refused without kernels of our own, and no operations of their own
    assert set().union(*CALLS) | drafts == {option["name"] for option in _C.options()}


def test_every_operation_that_the_sources_name_is_recorded(recorded):
    files = [*SOURCES.glob("*.cpp"), *(SOURCES / "kernels").glob("*.cpp")]
    included = {name for file in files for name in re.findall(r"#include <ATen/ops/(\w+)\.h>", file.read_text())}
    assert len(included) > 20
    run = {name.split(".")[0] for name in names(every_call(recorded))}
    assert included - {"from_blob", "tensor"} <= run  # no operations: they put a tensor around memory, or copy it


def test_every_operation_of_the_path_is_named(recorded):
    """A new one is looked at before it is used: not only whether MPS has it, but what it costs there."""
    assert {call.name for call in every_call(recorded)} == OPERATIONS


def test_what_only_another_device_does_is_recorded_too(recorded):
    # `tensor.to(device)` does nothing on the CPU; elsewhere it is this, which conversions between dtypes call as well.
    assert "_to_copy" in names(every_call(recorded))


@pytest.mark.parametrize("kernel", ["bmm.out", "cumsum.out", "sort.values_stable", "_index_put_impl_", "empty_strided"])
def test_an_operation_of_the_engine_would_be_missed(recorded, kernel):
    table = deepcopy(TABLE)
    table.entries[kernel]["dispatch"] = {"CPU, CUDA": kernel}
    found = problems(every_call(recorded), table)
    users = {kernel, *(name for name, entry in table.entries.items() if entry.get("structured_delegate") == kernel)}
    assert found and all(problem.removesuffix(" has no kernel for MPS").split(" > ")[-1] in users for problem in found)


# ---- how the host waits, and what is slow there ------------------------------------------------------------------

# What one row asks for in a step of decoding.
STEPS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "as it comes": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "top_p alone": {"top_k": 0, "top_p": 0.9},
    "typical_p": {"top_k": 0, "typical_p": 0.5},
    "edits and reports": {
        "repetition_penalty": 1.1,
        "bad_token_ids": [3],
        "min_p": 0.01,
        "top_logprobs": 3,
        "top_logprobs_mode": "both",
        "entropy": True,
    },
}
VOCAB = 3000


def step_of_decoding(model: DemiurgicForCausalLM, **options: Any) -> list[Call]:
    """The operations of one step of two rows that are past their prompts."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DEMIURGIC_KERNELS", "reference")
        engine = _C.Engine(live_weights(model), None, 512, False)
        call = engine.add(request(PROMPTS, interruptible=True, max_new_tokens=5, **options))  # a step at a time
        call.advance()
        call.advance()
        calls = record(call.advance)
        assert finish(call) == ["length"] * 2
    return calls


@pytest.fixture(scope="module", params=STEPS)
def step(request) -> list[Call]:
    return step_of_decoding(tiny_model(), **STEPS[request.param])


def test_a_step_waits_for_the_device_once(step):
    # The batch goes there while nothing is asked of the device, the options without anybody waiting for it; the results
    # come back together.
    assert len(transfers(step)) == 3
    assert not waits(step, TABLE)


@pytest.mark.parametrize("options", [{}, PLAIN, {"do_sample": False}], ids=str)
def test_steps_ahead_wait_for_nothing(options, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    monkeypatch.setenv("DEMIURGIC_STEPS", "ahead")
    engine = _C.Engine(live_weights(tiny_model()), None, 512, False)
    call = engine.add(request(PROMPTS, max_new_tokens=5, **options))
    engine.add(request([[5]], interruptible=True, max_new_tokens=1)).advance()  # one step, with all prompts
    calls = record(call.advance)
    num_steps = engine.counters()["num_steps"] - 1
    assert finish(call) == ["length"] * 2
    assert not waits(calls, TABLE)
    # For each step its batch, its options and its results; where a run of steps begins, the tokens that there are. The
    # recorder makes runs short.
    copies = transfers(calls)
    assert 3 * num_steps < len(copies) <= 5 * num_steps
    assert not any(is_waited_for(copy) for copy in copies)


def test_a_planted_copy_that_is_waited_for_is_found():
    waited, not_waited = transfers(record(lambda: (x.to("cpu"), x.to("cpu", non_blocking=True))))
    assert is_waited_for(waited) and not is_waited_for(not_waited)


@pytest.mark.parametrize("run", [lambda: x.sum().item(), lambda: x[x > 0.5], lambda: bool(x[0]), lambda: x.cpu()])
def test_a_planted_wait_is_found(run):
    calls = record(run)
    assert waits(calls, TABLE) or transfers(calls)


def test_products_are_of_two_dimensions(step):
    inputs = [call.inputs[0] for call in step if call.name == "linear"]
    assert len(inputs) == 2 * 7 + 1  # of each layer, and the head
    assert all(len(tensor.sizes) == 2 for tensor in inputs)


@pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)
def test_no_vocabulary_is_sorted_or_scanned(options):
    calls = step_of_decoding(fixed_logits_model(torch.linspace(0, 9, VOCAB)), **options)
    assert any(VOCAB in tensor.sizes for call in calls for tensor in call.inputs)
    for call in calls:
        if re.match("sort|argsort|cumsum|cumprod|multinomial|kthvalue|msort", call.name):
            assert max(call.inputs[0].sizes) < VOCAB / 2, call.name


x = torch.linspace(0.1, 0.9, 4)
PARTS = torch.tensor([2, 2])


# what is run, the operation that MPS lacks if it is one, what is said of it
PLANTED: list[tuple[Callable[[], object], str | None, str]] = [
    (lambda: torch.segment_reduce(x, "sum", lengths=PARTS), "segment_reduce", "segment_reduce has no kernel for MPS"),
    (lambda: torch.heaviside(x, x), "heaviside.out", "heaviside has no kernel for MPS"),  # structured
    (lambda: torch.frexp(x), "frexp.Tensor_out", "frexp.Tensor > frexp.Tensor_out has no kernel for MPS"),
    (lambda: torch.matrix_exp(x.view(2, 2)), "linalg_matrix_exp", "> linalg_matrix_exp has no kernel for MPS"),
    (lambda: torch.ops._test.leaky_relu(x), None, "_test::leaky_relu has no kernel for MPS"),  # not of ATen
    (lambda: x.double(), None, "to.dtype > _to_copy has a tensor of double, which MPS lacks"),
    (lambda: torch.zeros((), dtype=torch.float64), None, "zeros has a tensor of double, which MPS lacks"),
    (lambda: torch.empty(2, dtype=torch.complex128), None, "a tensor of c10::complex<double>, which MPS lacks"),
    (lambda: x.clone().detach_(), None, "detach_ is a composite that calls nothing; find out"),
]


@pytest.mark.parametrize(
    ("run", "lacked", "problem"), PLANTED, ids=[problem.split(" has")[0] for *_, problem in PLANTED]
)
def test_a_planted_operation_is_found(run, lacked, problem):
    if lacked and TABLE.has_mps(lacked):
        pytest.skip(f"this torch has {lacked} on MPS")
    assert any(problem in found for found in problems(record(run), TABLE))


@pytest.mark.parametrize(
    "run",
    [
        lambda: x * 0.5 + 1,  # a number is a float64 tensor to the kernel
        lambda: x.view(2, 2).t().reshape(4).to(torch.bfloat16),
        lambda: torch.nn.functional.linear(x.view(2, 2), x.view(2, 2)),
        lambda: torch.stack([x, x]).logsumexp(0),
    ],
)
def test_what_runs_on_mps_passes(run):
    calls = record(run)
    assert calls and not problems(calls, TABLE)
