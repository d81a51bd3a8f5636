"""generate is a guest in the user's process: it leaves what it finds, sees what changes, gives back what it took."""

import copy
import ctypes
import gc
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from models import fixed_logits_model, table_model, tiny_model
from plain_loop import logprobs_after, prompts_without_ties
from torch import nn
from torch.nn.utils import prune

from demiurgic import DemiurgicForCausalLM, GenerationConfig, engine, generate
from demiurgic.engine import Generation

PROMPTS = [[1, 2, 3], list(range(30, 50)), [7]]
OPTIONS = {"seed": 5, "max_new_tokens": 8, "num_return_sequences": 2, "repetition_penalty": 1.1}


def completions(model, **options):
    return generate(model, PROMPTS, return_dict_in_generate=True, **(OPTIONS | options)).completions


def engines_of(model):
    return list(engine._engines.get(model, ()))


# ---- the modes of the process ------------------------------------------------------------------------------


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "inference_mode(False)": lambda: torch.inference_mode(False),
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "saved tensors hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: 1 / 0, lambda t: 1 / 0),
}


def process_state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        warnings.filters[:],
        threading.active_count(),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["lists", "tensor"])
def test_modes_of_the_process_change_nothing_and_stay(form, mode):
    model = tiny_model()
    ids = PROMPTS if form == "lists" else torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = None if form == "lists" else [[0, 1, 1], [1, 1, 1]]
    expected = generate(model, ids, mask, return_dict_in_generate=True, **OPTIONS)
    with MODES[mode]():
        before = process_state()
        result = generate(model, ids, mask, return_dict_in_generate=True, **OPTIONS)
        assert process_state() == before
    assert torch.equal(result.sequences, expected.sequences)
    for name in ("logprobs", "processed_logprobs"):
        assert getattr(result, name).dtype == torch.float32
        assert torch.equal(getattr(result, name), getattr(expected, name))
    assert not result.logprobs.requires_grad


@pytest.mark.parametrize("mode", ["none", "inference_mode"])
def test_parameters_made_in_inference_mode(mode):
    with torch.inference_mode():
        model = tiny_model()
    with MODES[mode]():
        assert completions(model) == completions(tiny_model())


@pytest.mark.parametrize("first", MODES)
def test_calls_in_different_modes_share_an_engine(first):
    model, config = tiny_model(), GenerationConfig(seed=0, max_new_tokens=20)
    expected = generate(model, PROMPTS, generation_config=config)
    with MODES[first]():
        one = Generation(model, PROMPTS, config=config)
        one.advance()
    other = Generation(model, PROMPTS, config=config)
    assert one._engine is other._engine
    while other.advance():
        pass
    with MODES[first]():
        while one.advance():
            pass
    assert torch.equal(one.result().sequences, expected) and torch.equal(other.result().sequences, expected)


def test_training_mode_is_kept_and_dropout_not_applied():
    dropout = {"attention_dropout": 0.5, "hidden_dropout": 0.5, "embedding_dropout": 0.5}
    model, expected = tiny_model(**dropout).train(), completions(tiny_model())
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert completions(model) == expected
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


def test_gradients_are_untouched():
    model = tiny_model()
    model.model.embed_tokens.requires_grad_(False)
    ids = torch.tensor([[1, 2, 3]])
    model(ids, labels=ids).loss.backward()
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    grads = {name: (p.grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()}
    loss = model(ids, labels=ids).loss  # a graph under way
    completions(model)
    loss.backward()
    for name, p in model.named_parameters():
        assert p.requires_grad == needed[name] and p.is_leaf
        kept, values = grads[name]
        assert p.grad is kept
        if values is not None:
            torch.testing.assert_close(p.grad, 2 * values)


def test_a_model_that_has_generated_is_copied_pickled_and_saved_as_before(tmp_path):
    model = tiny_model()
    expected, attributes = completions(model), set(vars(model))
    assert set(vars(model)) == attributes == set(vars(tiny_model()))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert completions(other) == expected
    model.save_pretrained(tmp_path)
    assert completions(DemiurgicForCausalLM.from_pretrained(tmp_path)) == expected


# ---- hooks and changed parts -------------------------------------------------------------------------------


def test_hooks_of_the_outermost_module_neither_run_nor_go():
    model, ran = tiny_model(), []
    expected = completions(model)
    model.register_forward_hook(lambda *_: ran.append("after"))
    model.register_forward_pre_hook(lambda *_: ran.append("before"))
    model.register_forward_hook(lambda *_, **__: ran.append("with keywords"), with_kwargs=True)
    assert completions(model) == expected and ran == []
    model(torch.tensor([[1]]))
    assert ran == ["before", "after", "with keywords"]


def test_backward_hooks_do_not_matter():
    model = tiny_model()
    expected = completions(model)
    model.model.layers[0].register_full_backward_hook(lambda *_: 1 / 0)
    model.model.layers[1].register_full_backward_pre_hook(lambda *_: 1 / 0)
    model.lm_head.weight.register_hook(lambda _: 1 / 0)
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda _: 1 / 0)
    assert completions(model) == expected


class Adapter(nn.Linear):
    """A subclass that computes something else, as adapters do."""

    def forward(self, x):
        return super().forward(x) + 1


class Override(DemiurgicForCausalLM):
    def forward(self, *arguments, **keywords):
        return super().forward(*arguments, **keywords)


class Extended(DemiurgicForCausalLM):
    """With a value head, as reinforcement learning has it: the decoder is ours."""

    def __init__(self, config):
        super().__init__(config)
        self.value = nn.Linear(config.hidden_size, 1)


def replace_forward(model):
    model.model.layers[1].forward = lambda x, *_: (x, None, None)


def change_class(model):
    model.model.layers[1].mlp.gate_proj.__class__ = Adapter


# how the model is changed, what the message names
CHANGES = {
    "forward hook": (lambda m: m.model.layers[1].mlp.register_forward_hook(print), "layers.1.mlp has a forward hook"),
    "pre-hook": (lambda m: m.lm_head.register_forward_pre_hook(print), "lm_head has a forward hook"),
    "hook on the decoder": (lambda m: m.model.register_forward_hook(print), "model has a forward hook"),
    "weight norm": (lambda m: nn.utils.parametrizations.weight_norm(m.lm_head), "lm_head is of class Parametrized"),
    "parametrization": (
        lambda m: nn.utils.parametrize.register_parametrization(m.model.norm, "weight", nn.Identity()),
        "model.norm is of class ParametrizedRMSNorm"),
    "pruning": (lambda m: prune.random_unstructured(m.lm_head, "weight", 0.5), "lm_head has a forward hook"),
    "adapter": (lambda m: setattr(m.model.layers[0].self_attn, "q_proj", Adapter(32, 32, bias=False)),
                "model.layers.0.self_attn.q_proj is of class Adapter"),
    "other class": (lambda m: setattr(m.model, "norm", nn.LayerNorm(32)), "model.norm is of class LayerNorm"),
    "changed class": (change_class, "model.layers.1.mlp.gate_proj is of class Adapter"),
    "replaced forward": (replace_forward, "The forward of model.layers.1 was replaced"),
    "inside a compiled part": (
        lambda m: (m.model.layers[0].mlp.register_forward_hook(print),
                   m.model.layers.__setitem__(0, torch.compile(m.model.layers[0], backend="eager"))),
        "model.layers.0.mlp has a forward hook"),
    "sparse": (lambda m: m.lm_head._parameters.update(weight=m.lm_head.weight.detach().to_sparse()),
               r"lm_head.weight is torch.sparse_coo"),
    "no tensor": (lambda m: m.lm_head._parameters.update(weight=[1.0]), "lm_head.weight is a list, not a tensor"),
    "module in itself": (lambda m: m.model._modules.update(again=m.model), "does one contain itself"),
    "half a module": (lambda m: m.model._modules.update(half=nn.Linear.__new__(nn.Linear)),
                      "model.half has no _modules; the class of every"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_decoder_is_refused_by_name(change):
    model = tiny_model()
    alter, words = CHANGES[change]
    alter(model)
    with pytest.raises(ValueError, match=words):
        completions(model)


def test_hooks_for_all_modules_are_refused():
    model = tiny_model()
    for register in (
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        with register(lambda *_: None), pytest.raises(ValueError, match="A forward hook for all modules is registered"):
            completions(model)
    completions(model)


def test_a_class_with_another_forward_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="Override has a forward of its own"):
        completions(Override(tiny_model().config))
    monkeypatch.setattr("demiurgic.model.RMSNorm.forward", lambda self, x: x)
    with pytest.raises(ValueError, match=r"forward of model\.layers\.0\.input_layernorm was replaced"):
        completions(tiny_model())


def test_a_subclass_with_the_same_forward_generates():
    model = Extended(tiny_model().config)
    model.load_state_dict(tiny_model().state_dict(), strict=False)
    assert completions(model) == completions(tiny_model())


# ---- live weights ------------------------------------------------------------------------------------------


def step_with(make):
    def change(model):
        optimizer = make(model.parameters())
        model(torch.tensor([[1, 2, 3, 4]]), labels=torch.tensor([[1, 2, 3, 4]])).loss.backward()
        optimizer.step()

    return change


def compiled_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([[1, 2, 3, 4]]), labels=torch.tensor([[1, 2, 3, 4]])).loss.backward()
    before = [p.data_ptr() for p in model.parameters()]
    try:
        torch.compile(optimizer.step)()
    except Exception as error:  # no compiler, another Python than torch.compile knows
        pytest.skip(f"torch.compile of an optimizer step does not work here: {type(error).__name__}")
    assert [p.data_ptr() for p in model.parameters()] == before


def each(write):
    def change(model):
        for parameter in model.parameters():
            write(parameter)

    return change


@torch.no_grad()
def write_by_numpy(parameter):
    parameter.detach().numpy()[...] *= -1


@torch.no_grad()
def write_in_place(parameter):
    parameter.mul_(-1)


def replace_parameters(model):
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(-parameter.data))


def tie(model):
    model.lm_head.weight = model.model.embed_tokens.weight


def other_state(model):
    return {name: -tensor for name, tensor in model.state_dict().items()}


WRITES = {
    "AdamW": step_with(lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False, fused=False)),
    "AdamW foreach": step_with(lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True)),
    "AdamW fused": step_with(lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)),
    "SGD fused": step_with(lambda p: torch.optim.SGD(p, lr=0.5, fused=True)),
    "compiled step": compiled_step,
    "load_state_dict": lambda m: m.load_state_dict(other_state(m)),
    "load_state_dict, assign": lambda m: m.load_state_dict(other_state(m), assign=True),
    "data = ": each(lambda p: setattr(p, "data", -p.data)),
    "data.copy_": each(lambda p: p.data.copy_(-p.data)),
    "in place": each(write_in_place),
    "numpy": each(write_by_numpy),
    "new parameters": replace_parameters,
    "tied": tie,
    "one value": lambda m: m.lm_head.weight.data[5].add_(3.0),
    "resized": lambda m: m.resize_token_embeddings(120),
    "rope": lambda m: setattr(m.config, "rope_theta", 50.0),
    "scaled rope": lambda m: setattr(m.config, "rope_scaling", {"rope_type": "linear", "factor": 4.0}),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch")
def test_what_changes_the_weights_is_seen_by_the_next_call(held, write):
    if held and write == "compiled step":
        pytest.skip("one compilation is enough")
    model, prompt = tiny_model(num_hidden_layers=1), list(range(10, 30))
    under_way = Generation(model, [[1]], config=GenerationConfig(seed=0))
    with under_way if held else nullcontext():  # held: an engine that was made before the change is still alive
        before = generate(model, prompt, seed=1, max_new_tokens=8, return_dict_in_generate=True)
        WRITES[write](model)
        after = generate(model, prompt, seed=1, max_new_tokens=8, return_dict_in_generate=True)
    for result, same in ((after, True), (before, False)):
        expected = logprobs_after(model, prompt, result.completions[0])
        expected = expected.gather(1, torch.tensor(result.completions[0])[:, None])[:, 0]
        assert torch.allclose(result.logprobs[0], expected, rtol=0, atol=1e-4) == same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_seen_by_the_next_call(dtype):
    model, narrow = tiny_model(), tiny_model().to(dtype)
    before = generate(model, [1, 2, 3], seed=1, return_dict_in_generate=True)
    model.to(dtype)
    after = generate(model, [1, 2, 3], seed=1, return_dict_in_generate=True)
    assert torch.equal(after.logprobs, generate(narrow, [1, 2, 3], seed=1, return_dict_in_generate=True).logprobs)
    assert not torch.equal(after.logprobs, before.logprobs)


def test_a_call_under_way_sees_what_an_optimizer_writes_in_place():
    model = fixed_logits_model([3.0, 2.0, 1.0])
    with Generation(model, [[0]], config=GenerationConfig(do_sample=False, max_new_tokens=4)) as generation:
        generation.advance()
        with torch.no_grad():
            model.lm_head.weight.mul_(-1)
        generation.advance()
        assert generation.tokens(0) == [0, 2]


@pytest.mark.parametrize("options", [{"do_sample": True}, {"do_sample": False}])
def test_a_training_run_that_generates_has_the_same_losses(options):
    def losses(generates):
        torch.manual_seed(3)
        model = tiny_model(hidden_dropout=0.2, attention_dropout=0.1, embedding_dropout=0.1).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(12):
            ids = torch.randint(97, (2, 24))
            loss = model(ids, labels=ids).loss
            if generates:  # also between forward and backward
                generate(model, PROMPTS, seed=step, max_new_tokens=4, **options)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if generates:
                generate(model, torch.tensor([[1, 2]]), seed=step, max_new_tokens=4, **options)
            yield loss.item()

    without = list(losses(False))
    assert list(losses(True)) == without and without[-1] != without[0]


# ---- wrapped models ----------------------------------------------------------------------------------------


@pytest.fixture
def process_group():
    if not torch.distributed.is_available():
        pytest.skip("this torch has no distributed package")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def compile_parts(model):
    model.compile(backend="eager")
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    model.model.layers[1].mlp = torch.compile(model.model.layers[1].mlp, backend="eager")
    model.model.norm.compile(backend="eager")
    return model


WRAPPED = {
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda m: torch.compile(m, backend="eager"),
    "torch.compile of DDP": lambda m: torch.compile(nn.parallel.DistributedDataParallel(m), backend="eager"),
    "DDP of torch.compile": lambda m: nn.parallel.DistributedDataParallel(torch.compile(m, backend="eager")),
    "compiled parts": compile_parts,
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_models_generate(process_group, wrapper):
    model = WRAPPED[wrapper](tiny_model())
    assert completions(model) == completions(tiny_model())
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))  # also once torch.compile has compiled
        for parameter in model.parameters():
            parameter.mul_(-1)
    expected = tiny_model()
    WRITES["in place"](expected)
    assert completions(model) == completions(expected)


def test_a_compiled_model_has_generate():
    model = torch.compile(tiny_model(), backend="eager")
    assert torch.equal(model.generate(PROMPTS, **OPTIONS), generate(tiny_model(), PROMPTS, **OPTIONS))


def fsdp(model, mesh):
    return torch.distributed.fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def fsdp_inside(model, mesh):
    model.model.layers[1] = fsdp(model.model.layers[1], mesh)
    return model


def fully_shard(model, mesh):
    for layer in model.model.layers:
        torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
    return torch.distributed.fsdp.fully_shard(model, mesh=mesh)


def tensor_parallel(model, mesh):
    parallel = torch.distributed.tensor.parallel
    return parallel.parallelize_module(model, mesh, {"model.layers.1.mlp.up_proj": parallel.ColwiseParallel()})


def zero_3(model, mesh):
    model.lm_head.weight.ds_id = 7  # DeepSpeed marks what it has partitioned so
    return model


SHARDED = {
    "FSDP": (fsdp, "wrapped in FullyShardedDataParallel"),
    "FSDP of a layer": (fsdp_inside, "model.layers.1 is of class FullyShardedDataParallel"),
    "fully_shard": (
        fully_shard,
        "model.embed_tokens.weight is a DTensor, sharded by fully_shard or tensor parallelism",
    ),
    "tensor parallel": (tensor_parallel, "model.layers.1.mlp.up_proj.weight is a DTensor"),
    "ZeRO-3": (zero_3, "lm_head.weight is partitioned by DeepSpeed ZeRO-3"),
}


@pytest.mark.parametrize("sharding", SHARDED)
@pytest.mark.filterwarnings("ignore:FSDP:UserWarning", "ignore::FutureWarning")
def test_sharded_models_are_refused_by_name(process_group, sharding):
    shard, words = SHARDED[sharding]
    model = shard(tiny_model(), process_group)
    with pytest.raises(ValueError, match=words):
        completions(model)


# ---- threads -----------------------------------------------------------------------------------------------


def in_threads(*works):
    """Runs each in a thread of its own, all at a time; raises what one raised."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work):
        barrier.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads), "a call does not end"
    if errors:
        raise errors[0]


def test_two_threads_of_100_calls_as_one():
    # Greedy prompts without near-ties, and draws from a model whose logits are exact: beyond the bits of a sum's order.
    model, exact = tiny_model(), table_model(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
    prompts = prompts_without_ties(model, tuple(range(1, 21)), 4)

    def calls(thread):
        for call in range(50):
            some = prompts[(call + 7 * thread) % 20 :][: 1 + call % 3]
            yield generate(model, some, do_sample=False, max_new_tokens=4).tolist()
            ids = [[thread, call % 20], [3]]
            yield generate(exact, ids, seed=call + 50 * thread, max_new_tokens=4, num_return_sequences=2).tolist()

    expected = [list(calls(thread)) for thread in range(2)]
    results = [[], []]
    in_threads(lambda: results[0].extend(calls(0)), lambda: results[1].extend(calls(1)))
    assert results == expected
    assert len(results[0]) == len(results[1]) == 100


def test_calls_under_way_share_an_engine_where_their_limits_are_the_same():
    model, config = tiny_model(), GenerationConfig(seed=0)
    with Generation(model, [[1]], config=config) as one, Generation(model, [[2]], config=config) as other:
        assert one._engine is other._engine
        with Generation(model, [[1]], config=config, cache_bytes=10**6) as limited:
            assert limited._engine is not one._engine
        assert engines_of(model) != []
    with Generation(tiny_model(), [[1]], config=config) as elsewhere:
        assert elsewhere._engine is not one._engine


def test_trouble_in_one_thread_is_its_own():
    model, prompts = tiny_model(), None
    prompts = prompts_without_ties(model, (1, 5, 17), 12)
    options = {"do_sample": False, "max_new_tokens": 12}
    expected = generate(model, prompts, **options)
    done = threading.Event()

    def trouble():
        while not done.is_set():
            with pytest.raises(IndexError):
                generate(model, [[97]])
            with pytest.raises(TypeError):
                generate(model, [[1]], no_such_option=1)
            with pytest.raises(RuntimeError, match="forbid every token"):
                generate(model, [[1]], bad_token_ids=list(range(97)))
            with (
                pytest.raises(ZeroDivisionError),
                Generation(model, [[1], [2, 3]], config=GenerationConfig(seed=0)) as generation,
            ):
                raise ZeroDivisionError(generation.advance())

    def work():
        try:
            for _ in range(20):
                assert torch.equal(generate(model, prompts, **options), expected)
        finally:
            done.set()

    in_threads(trouble, work)
    assert torch.equal(generate(model, prompts, **options), expected)


INTERRUPT = """
import linecache, os, signal, sys, threading, time
from models import tiny_model
from plain_loop import prompts_without_ties
from demiurgic import engine, generate

def interrupt_when(model, ready):
    def press():
        while True:
            for running in list(engine._engines.get(model, ())):
                if ready(running.counters()):
                    pressed.append((running, time.monotonic()))
                    os.kill(os.getpid(), signal.SIGINT)
                    return
            time.sleep(0.001)

    pressed = []
    threading.Thread(target=press, daemon=True).start()
    return pressed
"""
BETWEEN_STEPS = """
model = tiny_model(max_position_embeddings=10**6)
prompts = prompts_without_ties(model, (1, 5, 17), 12)
options = {"do_sample": False, "max_new_tokens": 12}
expected = generate(model, prompts, **options).tolist()
done, results = threading.Event(), []

def neighbour():
    while not done.is_set():
        results.append(generate(model, prompts, **options).tolist())

thread = threading.Thread(target=neighbour)
thread.start()
pressed = interrupt_when(model, lambda counters: counters["num_used_blocks"] > 12)  # more than the neighbour ever has
try:
    generate(model, [[1], [2, 3]], seed=0, max_new_tokens=100_000)
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0][1])
done.set()
thread.join()
assert results and all(result == expected for result in results)
assert generate(model, prompts, **options).tolist() == expected
pressed.clear()
assert not engine._engines.get(model)
"""
# One step of some seconds, in which nothing else can interrupt it than what the engine asks between layers.
BETWEEN_LAYERS = """
model = tiny_model(num_hidden_layers=40, initializer_range=0.02, max_position_embeddings=10**6)
pressed = interrupt_when(model, lambda counters: counters["num_used_blocks"] > 0)
try:
    generate(model, [1] * 1500, seed=0, max_step_tokens=1500)
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0][1])
counters = pressed[0][0].counters()
assert counters["num_steps"] == counters["num_computed_tokens"] == counters["num_used_blocks"] == 0, counters
assert len(generate(model, [1], seed=0, max_new_tokens=3)[0]) == 4
"""
# The same step, run by another thread; the main one waits for its end to add its rows.
WHILE_ADDING = """
model = tiny_model(num_hidden_layers=40, initializer_range=0.02, max_position_embeddings=10**6)
results = []
step = lambda: results.append(generate(model, [1] * 1500, seed=0, max_step_tokens=1500, max_new_tokens=2))
thread = threading.Thread(target=step)
thread.start()
while not any(running.counters()["num_used_blocks"] for running in list(engine._engines.get(model, ()))):
    time.sleep(0.001)

def main_thread_adds(counters):
    frame = sys._current_frames()[threading.main_thread().ident]
    return "_engine.add(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)

pressed = interrupt_when(model, main_thread_adds)
try:
    generate(model, [1], seed=0, max_step_tokens=1500)
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0][1])
assert results == []
thread.join()
assert len(results) == 1
assert len(generate(model, [1], seed=0, max_new_tokens=3)[0]) == 4
"""


@pytest.mark.parametrize(
    "script",
    [BETWEEN_STEPS, BETWEEN_LAYERS, WHILE_ADDING],
    ids=["between steps", "between layers", "while adding"],
)
def test_ctrl_c(script):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPT + script], capture_output=True, text=True, timeout=300, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    # No measure of speed: the first call would take minutes to its end, the second is checked to have stopped inside.
    assert float(ran.stdout) < 10


# ---- memory ------------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="reads /proc, and sanitizers keep freed memory",
)


def resident_bytes():
    """Memory of the process, without what the C allocator keeps of freed memory for later."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@linux
def test_a_thousand_calls_leave_no_memory_behind():
    # Leaked caches would be 16 MB, 1000 times 64 tokens of 256 bytes; what the C allocator's pools and Python's own
    # caches still add after the first calls stays far below the 4 MB allowed here.
    model = tiny_model()

    def calls(count):
        for i in range(count):
            generate(model, [list(range(62)), [i % 97]], seed=i, max_new_tokens=2, num_return_sequences=1 + i % 2)

    calls(150)
    before = resident_bytes()
    calls(1000)
    assert resident_bytes() - before < 4e6


@linux
def test_memory_is_back_after_a_call():
    model = tiny_model(
        attention_head_dim=512, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=2048
    )
    prompt, options, kept = [1] * 2000, {"seed": 0, "max_new_tokens": 2}, 2**25
    generate(model, prompt, **options)  # torch's libraries keep buffers for this size, and we a little
    before = resident_bytes()
    with Generation(model, prompt, config=GenerationConfig(**options)) as generation:
        while generation.advance():
            pass
        cache_bytes = generation._engine.counters()["cache_bytes"]
        assert cache_bytes >= 2000 * 2 * 2 * 8 * 512 * 4  # tokens, k and v, layers, heads, head_dim, float32
        assert resident_bytes() - before > 0.9 * cache_bytes - kept
    del generation
    assert resident_bytes() - before < 0.2 * cache_bytes


@linux
def test_no_more_than_a_little_memory_is_kept():
    model = tiny_model(attention_head_dim=512, num_key_value_heads=4, max_position_embeddings=2048)
    generate(model, [1] * 100, seed=0, max_new_tokens=2)
    before = resident_bytes()
    for length in range(200, 2000, 300):  # caches of 7 to 56 MB, in blocks of other sizes each time
        generate(model, [1] * length, seed=0, max_new_tokens=2)
    assert resident_bytes() - before < 2**25 + 1e7


FAULTS = """
import resource
import torch
from models import tiny_model
from demiurgic import generate

torch.set_num_threads(1)
model = tiny_model(attention_head_dim=64, num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=1024)
counts = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    generate(model, [1] * 1000, seed=0, max_new_tokens=2)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""


@linux
def test_a_call_takes_over_the_memory_of_the_one_before():
    # malloc, which may do so by itself, is told not to.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    ran = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    cache_pages = 1000 * 2 * 2 * 16 * 64 * 4 // os.sysconf("SC_PAGE_SIZE")  # tokens, k and v, layers, heads, d, float32
    assert int(ran.stdout) < cache_pages // 4


def test_an_exception_that_is_kept_holds_no_cache():
    model = tiny_model()

    def failing(ids, scores):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:  # as a notebook keeps the last one
        generate(model, PROMPTS, logits_processor=failing, **OPTIONS)
    (held,) = engines_of(model)  # by the frame of generate, in the traceback
    assert held.counters()["cache_bytes"] == 0
    assert completions(model) == completions(tiny_model())
    del caught


def test_no_engine_is_left():
    model = tiny_model()
    generate(model, PROMPTS, **OPTIONS)
    assert engines_of(model) == []
    for wrong in ({"input_ids": [[97]]}, {"input_ids": [[]]}, {"input_ids": [[1]], "cache_bytes": 1}):
        with pytest.raises((IndexError, ValueError, RuntimeError)) as caught:
            generate(model, **wrong)
        del caught  # its traceback holds the frames
        gc.collect()
        assert engines_of(model) == []
    config = GenerationConfig(seed=0)
    with pytest.raises(ZeroDivisionError) as caught, Generation(model, [[1]], config=config) as generation:
        raise ZeroDivisionError(generation.advance())
    assert generation.finish_reason(0) == "cancelled" and generation._engine.counters()["num_used_blocks"] == 0
    del generation, caught
    gc.collect()
    assert engines_of(model) == []


def test_a_generation_that_is_dropped_is_cancelled():
    model, config = tiny_model(), GenerationConfig(seed=0)
    with Generation(model, [[1]], config=config) as kept:
        dropped = Generation(model, [[2]] * 4, config=config)
        dropped.advance()
        assert kept._engine.counters()["num_used_blocks"] == 5
        del dropped
        gc.collect()
        assert kept._engine.counters()["num_used_blocks"] == 1


def test_the_model_is_let_go():
    model = tiny_model()
    parameter, module = weakref.ref(model.lm_head.weight), weakref.ref(model)
    generation = Generation(model, [[1]], config=GenerationConfig(seed=0, max_new_tokens=2))
    del model
    gc.collect()
    assert module() is None and parameter() is None  # the engine holds the numbers, not the module
    while generation.advance():
        pass
    assert generation.finish_reason(0) == "length"
