"""On a GPU: memory is given back and shared, an allocation that fails is an exception, streams are kept in order."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import tiny_model

from demiurgic import DemiurgicForCausalLM, GenerationConfig, generate, score, session, stream
from demiurgic.engine import Generation

pytestmark = pytest.mark.cuda

PROMPTS = [[1, 2, 3], list(range(30, 50)), [7]]
MIB = 2**20


def completions(model: DemiurgicForCausalLM, prompts: Any = PROMPTS, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 12, "seed": 5} | options
    return generate(model, prompts, return_dict_in_generate=True, **options).completions


def wide_model() -> DemiurgicForCausalLM:
    """Each token takes 32 KiB of cache, a row of 1000 tokens 31 MiB in four tensors."""
    return tiny_model(attention_head_dim=512, num_key_value_heads=4, max_position_embeddings=4096).cuda()


# --- memory ----------------------------------------------------------------------------------------------------------


def cancelled(model: DemiurgicForCausalLM) -> None:
    with Generation(model, PROMPTS, config=GenerationConfig(seed=0)) as generation:
        generation.advance()


def dropped_stream(model: DemiurgicForCausalLM) -> None:
    for _ in stream(model, PROMPTS, seed=0):
        break


def refused(model: DemiurgicForCausalLM) -> None:
    with pytest.raises(RuntimeError, match="key/value cache"):
        generate(model, PROMPTS, max_new_tokens=100, cache_bytes=1, seed=0)


def failing_hook(model: DemiurgicForCausalLM) -> None:
    with pytest.raises(ZeroDivisionError):
        generate(model, PROMPTS, seed=0, logits_processor=lambda ids, scores: scores / (1 // 0))


def closed_session(model: DemiurgicForCausalLM) -> None:
    with session(model) as kept:
        generate(model, PROMPTS, seed=0, session=kept)
        generate(model, PROMPTS, seed=0, session=kept)


ENDINGS = [completions, lambda m: score(m, PROMPTS), cancelled, dropped_stream, refused, failing_hook, closed_session]


@pytest.mark.parametrize("call", ENDINGS)
def test_the_allocator_is_back_at_its_level(call: Callable[[DemiurgicForCausalLM], Any]) -> None:
    model = tiny_model().cuda()

    def level() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    call(model)  # libraries keep workspaces
    before = level()
    for _ in range(3):
        call(model)
        assert level() == before


def test_room_is_left_on_the_device() -> None:
    model = tiny_model().cuda()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(RuntimeError, match="the device has room for") as caught:
        generate(model, [[1]], max_new_tokens=2**40, seed=0)
    room = float(re.search(r"has room for ([\d.e+]+) MB", str(caught.value))[1]) * 1e6
    left = free - room
    # What torch's allocator holds unused is room too: after empty_cache at most the rest of a segment.
    assert min(512 * MIB, free // 2) - 64 * MIB < left < max(0.1 * free, 512 * MIB) + 64 * MIB


@contextmanager
def little_memory(num_bytes: int) -> Iterator[None]:
    """torch's allocator may take no more than `num_bytes` from the driver, beside what it holds in use."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_rows_wait_where_the_device_gives_less_than_it_seems_to_have() -> None:
    model = wide_model()
    prompts = [[row % 97] * 900 for row in range(8)]  # 8 times 29 MiB
    expected = completions(model, prompts)
    with little_memory(200 * MIB):  # two thirds of a cache in four tensors, and what a step takes
        assert completions(model, prompts) == expected


def test_out_of_memory_is_an_exception_with_the_numbers_and_the_model_goes_on() -> None:
    model = wide_model()
    expected = completions(model)
    with little_memory(100 * MIB):
        level = torch.cuda.memory_allocated()
        with pytest.raises(RuntimeError, match=r"longest row needs 1[\d.]+ MB of key/value cache, and cuda:0 did"):
            generate(model, [[1] * 4000], max_new_tokens=10, seed=0)
        assert torch.cuda.memory_allocated() - level < MIB
        assert completions(model) == expected
    assert completions(model, [[1] * 4000])  # with memory, it fits


def test_out_of_memory_in_a_step_leaves_the_model_usable() -> None:
    model = wide_model()
    expected, level = completions(model), torch.cuda.memory_allocated()

    def grasping(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        torch.empty(2**40, dtype=torch.uint8, device=scores.device)
        return scores

    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate") as caught:
        generate(model, PROMPTS, seed=0, logits_processor=grasping)
    assert torch.cuda.memory_allocated() - level < MIB  # though the exception is alive, and its traceback the call
    assert completions(model) == expected
    del caught


# --- streams ---------------------------------------------------------------------------------------------------------


def changed_late(model: DemiurgicForCausalLM, other: DemiurgicForCausalLM) -> None:
    """The parameters of `other`, by what is queued on the current stream behind some tenths of a second of waiting."""
    torch.cuda._sleep(500_000_000)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(value, non_blocking=True)


@pytest.mark.parametrize("made_on", ["the caller's stream", "another stream"])
def test_a_call_comes_after_what_its_thread_has_queued(made_on: str) -> None:
    """The steps are then run with another current stream, as by another thread whose call shares the engine."""
    model, other = tiny_model().cuda(), tiny_model(initializer_range=0.5).cuda()
    expected = completions(other)
    assert completions(model) != expected
    config, side = GenerationConfig(max_new_tokens=12, seed=5), torch.cuda.Stream()
    torch.cuda.synchronize()
    first = Generation(model, [[1]], config=config) if made_on == "another stream" else None  # makes the engine
    with torch.cuda.stream(side):
        changed_late(model, other)
        generation = Generation(model, PROMPTS, config=config)
    assert not side.query()  # the parameters are still the old ones
    while generation.advance():
        pass
    assert [generation.tokens(row) for row in range(3)] == expected
    del first


def test_what_follows_a_call_comes_after_it() -> None:
    model, other = tiny_model().cuda(), tiny_model(initializer_range=0.5).cuda()
    values = [[value.clone() for value in each.parameters()] for each in (model, other)]
    expected = [completions(each) for each in (model, other)]
    kept = Generation(model, [[1]], config=GenerationConfig(max_new_tokens=200, seed=0))  # on the default stream
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(20):
            with torch.no_grad():
                for parameter, value in zip(model.parameters(), values[i % 2], strict=True):
                    parameter.copy_(value)
            assert completions(model) == expected[i % 2]
    kept.cancel()


def test_the_current_stream_and_device_are_left() -> None:
    model, side = tiny_model().cuda(), torch.cuda.Stream()
    generation = Generation(model, PROMPTS, config=GenerationConfig(seed=0, max_new_tokens=4))
    with torch.cuda.stream(side):
        while generation.advance():
            assert torch.cuda.current_stream() == side
        generate(model, PROMPTS, seed=0, max_new_tokens=4)
        assert torch.cuda.current_stream() == side
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.current_device() == model.lm_head.weight.device.index


def test_threads_with_streams_of_their_own_get_what_they_get_alone() -> None:
    model = tiny_model().cuda()
    prompts = [[[thread, i] + [i] * (10 * thread) for i in range(3)] for thread in range(6)]
    alone = [completions(model, each) for each in prompts]
    found: list[Any] = [None] * len(prompts)

    def run(thread: int) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(side):
            found[thread] = [completions(model, prompts[thread]) for _ in range(5)]

    torch.cuda.synchronize()
    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(len(prompts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [[expected] * 5 for expected in alone]
