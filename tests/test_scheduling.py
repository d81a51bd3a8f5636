"""Random workloads in small caches: calls end, blocks come back, and each row has the tokens it would have alone."""

import random
import threading
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model
from plain_loop import greedy, prompts_without_ties

from demiurgic import GenerationConfig
from demiurgic.engine import Generation

BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the cache of tiny_model: k and v, layers, tokens, heads, head_dim, float32
LENGTHS = (1, 2, 9, 15, 16, 17, 31, 32, 40)
NEW = 24
LEAST_BLOCKS = 4  # of 16 tokens, which hold 40 + 24 - 1


@cache
def model_and_texts():
    """A model, and prompts with the tokens that follow them, by the plain loop."""
    model = tiny_model()
    return model, [(prompt, greedy(model, prompt, NEW)[0]) for prompt in prompts_without_ties(model, LENGTHS, NEW)]


class Caller:
    """One call of generate under way, and what must come of it."""

    def __init__(self, texts, limits, *, prompts, copies, new, eos, use_cache, max_running):
        model, _ = model_and_texts()
        chosen = [texts[i] for i in prompts]
        self.expected = [self._until(completion[:new], eos) for _, completion in chosen for _ in range(copies)]
        self.generation = Generation(
            model,
            [prompt for prompt, _ in chosen],
            config=GenerationConfig(
                do_sample=False, max_new_tokens=new, eos_token_id=eos, num_return_sequences=copies, use_cache=use_cache
            ),
            max_running=max_running,
            **limits,
        )
        self.under_way = True

    @staticmethod
    def _until(tokens, ends):
        end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[: end + 1]

    def advance(self):
        self.under_way = self.generation.advance()

    def cancel(self):
        self.generation._call.cancel()

    def finish(self, most_steps=50_000):
        for _ in range(most_steps):
            if not self.under_way:
                return
            self.advance()
        raise AssertionError("the call does not end")

    def check(self):
        """Every row ended as it would alone, or, if the call was cancelled, on the way there."""
        for row, expected in enumerate(self.expected):
            tokens, reason = self.generation.tokens(row), self.generation.finish_reason(row)
            if reason == "cancelled":
                assert tokens == expected[: len(tokens)]
            else:
                assert tokens == expected and reason in ("eos", "length")


callers = st.fixed_dictionaries(
    {
        "prompts": st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=4),
        "copies": st.integers(1, 3),
        "new": st.integers(0, NEW),
        "eos": st.sampled_from([[], list(range(0, 97, 9))]),
        "use_cache": st.sampled_from([True, True, True, False]),
        "max_running": st.sampled_from([1, 2, 3, 256]),
    }
).map(lambda call: call if call["use_cache"] else call | {"new": call["new"] % 6})  # each of them computes the prompt
limits = st.fixed_dictionaries(
    {
        "cache_bytes": st.integers(LEAST_BLOCKS * BLOCK_BYTES, 4 * LEAST_BLOCKS * BLOCK_BYTES),
        "max_step_tokens": st.sampled_from([1, 7, 30, 512]),
    }
)
steps = st.lists(st.tuples(st.sampled_from(["advance"] * 6 + ["cancel", "add"]), st.integers(0, 9)), max_size=60)


@settings(max_examples=40, deadline=None)
@given(limits, st.lists(callers, min_size=1, max_size=5), steps)
def test_calls_added_advanced_and_cancelled_in_any_order(limits, calls, steps):
    _, texts = model_and_texts()
    waiting = [lambda call=call: Caller(texts, limits, **call) for call in calls]
    under_way = [waiting.pop()()]
    engine = under_way[0].generation._engine
    for step, index in steps:
        if step == "add" and waiting:
            under_way.append(waiting.pop()())
        caller = under_way[index % len(under_way)]
        if step == "cancel":
            caller.cancel()
            caller.check()
        elif step == "advance":
            caller.advance()
    under_way += [make() for make in waiting]
    random.Random(len(steps)).shuffle(under_way)
    for caller in under_way:
        assert caller.generation._engine is engine
        caller.finish()
        caller.check()
    counters = engine.counters()
    assert counters["num_used_blocks"] == 0
    assert counters["cache_bytes"] <= limits["cache_bytes"]


@pytest.mark.parametrize("seed", range(6))
def test_threads_that_call_and_cancel_at_any_time(seed):
    dice = random.Random(seed)
    _, texts = model_and_texts()
    limits = {"cache_bytes": dice.randint(4, 10) * BLOCK_BYTES, "max_step_tokens": dice.choice([3, 20, 512])}
    keeper = Caller(texts, limits, prompts=[0], copies=1, new=1, eos=[], use_cache=True, max_running=1)
    engine = keeper.generation._engine
    ended, errors = [], []

    def work(dice):
        try:
            for _ in range(5):
                caller = Caller(
                    texts,
                    limits,
                    prompts=dice.choices(range(len(LENGTHS)), k=dice.randint(1, 3)),
                    copies=dice.randint(1, 3),
                    new=dice.randint(1, NEW),
                    eos=dice.choice([[], [5, 40, 41, 42, 60, 61, 62]]),
                    use_cache=dice.random() < 0.8,
                    max_running=dice.choice([1, 2, 256]),
                )
                assert caller.generation._engine is engine
                canceller = threading.Timer(dice.random() * 0.1, caller.cancel) if dice.random() < 0.4 else None
                if canceller:
                    canceller.start()
                caller.finish()
                caller.check()
                if canceller:
                    canceller.join()
                ended.append(caller)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(random.Random(10 * seed + i),), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a call does not end"
    assert errors == []
    assert len(ended) == 20
    keeper.finish()
    keeper.check()
    assert engine.counters()["num_used_blocks"] == 0


def test_only_what_nothing_may_come_between_goes_on_for_several_steps():
    model, texts = model_and_texts()
    prompt, completion = texts[4]

    def num_advances(interruptible):
        config = GenerationConfig(do_sample=False, max_new_tokens=NEW, eos_token_id=[])
        with Generation(model, [prompt], config=config, interruptible=interruptible) as generation:
            number = 1
            while generation.advance():
                number += 1
            assert generation.tokens(0) == completion
        return number

    assert num_advances(interruptible=True) == NEW
    assert num_advances(interruptible=False) < NEW


def test_a_cancelled_call_frees_its_blocks_for_those_that_wait():
    _, texts = model_and_texts()
    limits = {"cache_bytes": LEAST_BLOCKS * BLOCK_BYTES, "max_step_tokens": 512}
    options = {"copies": 1, "new": NEW, "eos": [], "use_cache": True, "max_running": 256}
    first, second = (Caller(texts, limits, prompts=[8], **options) for _ in range(2))
    engine = first.generation._engine
    first.advance()
    assert engine.counters()["num_used_blocks"] == 3  # 40 tokens; four blocks have no room for the second row
    first.cancel()
    assert first.generation.finish_reason(0) == "cancelled"
    assert engine.counters()["num_used_blocks"] == 0
    assert not first.generation.advance()  # it is finished
    second.advance()
    assert second.generation.tokens(0) == second.expected[0][:1]
    assert engine.counters()["num_steps"] == 2
    second.finish()
    second.check()


def test_rows_are_admitted_in_order_and_the_last_admitted_is_preempted_first():
    _, texts = model_and_texts()
    limits = {"cache_bytes": 5 * BLOCK_BYTES, "max_step_tokens": 512}
    # Of 9, 15 and 16 tokens: 3 blocks at once, 6 once all pass 16 and then 32.
    caller = Caller(texts, limits, prompts=[2, 3, 4], copies=1, new=NEW, eos=[], use_cache=True, max_running=256)
    ends = []
    while caller.under_way:
        caller.advance()
        ends += [row for row in range(3) if row not in ends and caller.generation.finish_reason(row) != "none"]
    caller.check()
    assert caller.generation._engine.counters()["num_preemptions"] > 0
    assert ends == [0, 1, 2]


def test_a_short_row_does_not_overtake_a_long_one_that_waits_for_blocks():
    _, texts = model_and_texts()
    limits = {"cache_bytes": 5 * BLOCK_BYTES, "max_step_tokens": 512}
    # 40, 40 and 1 tokens: the first leaves two blocks, too few for the second but not for the third.
    caller = Caller(texts, limits, prompts=[8, 8, 0], copies=1, new=NEW, eos=[], use_cache=True, max_running=256)
    while not caller.generation.tokens(2):
        assert caller.under_way
        caller.advance()
    assert caller.generation.tokens(1) != []
    caller.finish()
    caller.check()


def test_a_cache_that_grows_call_by_call_is_copied_a_few_times():
    model, calls, sizes = tiny_model(), [], []
    for _ in range(60):
        calls.append(Generation(model, [1] * 40, config=GenerationConfig(max_new_tokens=40, do_sample=False)))
        sizes.append(calls[-1]._engine.counters()["cache_bytes"])
    assert len(set(sizes)) <= 12  # 60 times one call's: 1.5 ** 11 or less
    assert sizes[-1] <= 1.5 * 60 * sizes[0]
    for call in calls:
        call.cancel()
