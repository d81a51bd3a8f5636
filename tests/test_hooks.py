"""Logits processors and stopping criteria of the user's: what they are shown, and what becomes of what they return."""

import dataclasses
import functools
import gc
import threading
import traceback
import weakref

import numpy as np
import pytest
import torch
from models import fixed_logits_model, tiny_model
from same_bits import check_same_bits

from demiurgic import GenerationError, generate, score, session, stream
from demiurgic.engine import Generation, merged

PROMPTS = [[3], list(range(20, 37)), [5, 6, 5, 6, 7], [88, 1]]
SEEDS = [11, 12, 13, 14]
OPTIONS = {
    "greedy": {"do_sample": False},
    "sampled": {"temperature": 0.9, "top_k": 40},
    "every step": {
        "logit_bias": {3: 1.5, 4: -2.0},
        "bad_token_ids": [9],
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "no_repeat_ngram_size": 2,
        "min_new_tokens": 5,
        "eos_token_id": [1, 2, 3, 4, 5, 6],
        "temperature": 0.7,
        "top_k": 30,
        "typical_p": 0.9,
        "min_p": 0.01,
    },
}
BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the cache of tiny_model: k and v, layers, tokens, heads, head_dim, float32
TOLD = {"top_logprobs": 4, "top_logprobs_mode": "both", "entropy": True, "prompt_logprobs": True}
WAYS = {
    "all at once": {},
    "two at a time": {"max_running": 2},
    "prompts in chunks": {"max_step_tokens": 5},
    "preempted": {"cache_bytes": 4 * BLOCK_BYTES},
    "no cache": {"use_cache": False},
}


def run(model, prompts=PROMPTS, **options):
    return generate(model, prompts, **({"max_new_tokens": 12, "return_dict_in_generate": True} | options))


def begun(model, prompts, logits_processor=None, stopping_criteria=None, want_logprobs=False, **options):
    hooks = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
    return Generation(model, prompts, config=merged(None, options), want_logprobs=want_logprobs, **hooks)


def check_equal(one, other):
    """All that two results say, but how long it took."""
    for field in dataclasses.fields(one):
        mine, others = getattr(one, field.name), getattr(other, field.name)
        if field.name == "timings":
            continue
        if isinstance(mine, torch.Tensor):
            check_same_bits(mine, others)
        else:
            assert mine == others, field.name


def nothing(input_ids, scores):
    return scores


def never(input_ids, scores):
    return False


def against_the_last(input_ids, scores):
    """Something that depends on a row's tokens, however it is padded: halves the logits of ids near the last one's."""
    last = input_ids[:, -1:]
    near = (torch.arange(scores.shape[1], device=scores.device) - last).abs() < 20
    return torch.where(near, scores * 0.5, scores)


def ends_on_multiples_of_seven(input_ids, scores):
    return input_ids[:, -1] % 7 == 0


# ---- the same as without, and as alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIONS)
def test_hooks_that_do_nothing_change_no_bit(name, way):
    model, options = tiny_model(), OPTIONS[name] | WAYS[way] | {"seed": SEEDS}
    hooked = run(model, logits_processor=nothing, stopping_criteria=never, **options)
    check_equal(hooked, run(model, **options))


@pytest.mark.parametrize("name", OPTIONS)
def test_hooks_that_do_nothing_change_no_bit_on_any_instruction_set(name, isa):
    model, options = tiny_model(), OPTIONS[name] | TOLD | {"seed": SEEDS}
    hooked = run(model, logits_processor=nothing, stopping_criteria=never, **options)
    check_equal(hooked, run(model, **options))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_hooked_row_is_as_if_it_were_alone(name, way):
    model = tiny_model()
    options = OPTIONS[name] | {"logits_processor": against_the_last, "stopping_criteria": ends_on_multiples_of_seven}
    together = run(model, **options, **WAYS[way], seed=SEEDS)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = run(model, [prompt], **options, seed=[seed])
        assert together.completions[row] == alone.completions[0]
        assert together.finish_reasons[row] == alone.finish_reasons[0]
        logprobs = together.logprobs[row, : together.lengths[row]]
        torch.testing.assert_close(logprobs, alone.logprobs[0], rtol=0, atol=1e-4)
    assert together.completions != run(model, **OPTIONS[name], seed=SEEDS).completions


@pytest.mark.parametrize("reference", [False, True])
def test_a_bias_by_hand_is_logit_bias(reference, monkeypatch):
    if reference:
        monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    model, bias = tiny_model(), torch.zeros(97)
    bias[[3, 50]] = torch.tensor([2.5, -1.25])
    by_hand = run(model, logits_processor=lambda ids, scores: scores + bias, seed=SEEDS)
    check_equal(by_hand, run(model, logit_bias={3: 2.5, 50: -1.25}, seed=SEEDS))


def test_temperature_and_what_follows_come_after_the_hook():
    model = tiny_model()
    divided = run(model, temperature=None, top_k=5, seed=SEEDS, logits_processor=lambda ids, scores: scores / 0.5)
    check_equal(divided, run(model, temperature=0.5, top_k=5, seed=SEEDS))


def test_hooks_are_called_in_the_order_of_the_list():
    model, order = fixed_logits_model([1.0, 2.0, 3.0]), []

    def hook(name, factor, added):
        def process(input_ids, scores):
            order.append(name)
            return scores * factor + added

        return process

    plus = torch.tensor([1.5, 0.0, 0.0])  # times 3 only where it comes first: 7.5, 6, 9 or 4.5, 6, 9, less 4 for id 2
    hooks = [hook("plus", 1, plus), [hook("times", 3, torch.tensor([0, 0, -4.0]))]]
    result = run(model, [[0]], do_sample=False, max_new_tokens=2, logits_processor=hooks)
    assert result.completions == [[0, 0]] and order == ["plus", "times"] * 2
    result = run(model, [[0]], do_sample=False, max_new_tokens=1, logits_processor=tuple(reversed(hooks)))
    assert result.completions == [[1]]


def test_raw_logprobs_stay_those_of_the_model():
    model, prompts = tiny_model(), [[5, 6, 7]]
    wanted = 42

    def only(input_ids, scores):
        scores.fill_(-torch.inf)  # in place, on what is the hook's alone
        scores[:, wanted] = 1.0
        return scores

    result = run(model, prompts, max_new_tokens=6, logits_processor=only)
    assert result.completions == [[wanted] * 6]
    torch.testing.assert_close(result.logprobs, score(model, result.sequences)[:, 2:], rtol=0, atol=1e-5)
    assert result.processed_logprobs.tolist() == [[0.0] * 6]


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"seed": SEEDS, "repetition_penalty": 1.3}])
def test_reports_of_hooked_rows(reference, options, monkeypatch):
    if reference:
        monkeypatch.setenv("DEMIURGIC_KERNELS", "reference")
    model, bias = tiny_model(), torch.zeros(97)
    bias[[3, 50]] = torch.tensor([2.5, -1.25])
    plain = run(model, **options, **TOLD)
    check_equal(run(model, **options, **TOLD, logits_processor=nothing, stopping_criteria=never), plain)
    biased = run(model, **options, **TOLD, logits_processor=lambda ids, scores: scores.add_(bias))
    if "repetition_penalty" not in options:  # which comes after logit_bias
        check_equal(biased, run(model, **options, **TOLD, logit_bias={3: 2.5, 50: -1.25}))
    assert biased.completions != plain.completions


def test_reports_of_several_calls_in_one_step():
    model, options = tiny_model(), {"seed": SEEDS, "max_new_tokens": 12, **TOLD}
    with_hooks = {"logits_processor": nothing}
    calls = [begun(model, PROMPTS, **(with_hooks if i % 2 else {}), **options, want_logprobs=True) for i in range(4)]
    while any(call.advance() for call in calls):
        pass
    for call in calls:
        check_equal(call.result(), run(model, **options))


def test_the_models_report_where_a_processor_mends():
    broken = fixed_logits_model([0.0, float("nan"), 2.0, 1.0])
    options = {"do_sample": False, "max_new_tokens": 2, "logits_processor": lambda _, scores: scores.nan_to_num(0.0)}
    result = run(broken, [[0]], **options, top_logprobs=2, top_logprobs_mode="both", entropy=True)
    assert result.completions == [[2, 2]]
    assert result.top_logprob_ids.tolist() == [[[-1, -1]] * 2] and result.top_logprobs.isnan().all()
    assert result.entropies.isnan().all() and not result.processed_entropies.isnan().any()
    assert result.processed_top_logprob_ids.tolist() == [[[2, 3]] * 2]


# ---- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stream_with_hooks_gives_what_generate_gives(name):
    model = tiny_model()
    hooks = {"logits_processor": against_the_last, "stopping_criteria": ends_on_multiples_of_seven}
    events = list(stream(model, PROMPTS, **OPTIONS[name], **hooks, seed=SEEDS, max_new_tokens=12))
    whole = run(model, **OPTIONS[name], **hooks, seed=SEEDS)
    for row in range(len(PROMPTS)):
        mine = [event for event in events if event.row == row]
        assert [token for event in mine for token in event.token_ids] == whole.completions[row]
        assert mine[-1].finish_reason == whole.finish_reasons[row]


def test_what_a_hook_raises_leaves_the_stream():
    def raises(input_ids, scores):
        if input_ids.shape[1] == 4:
            raise LookupError("mine")
        return scores

    events, model = [], tiny_model()
    with pytest.raises(LookupError, match="mine"):
        for event in stream(model, [[1, 2]], logits_processor=raises, seed=5):
            events.append(event)
    assert [token for event in events for token in event.token_ids] == run(model, [[1, 2]], seed=5).completions[0][:2]


# ---- sessions -------------------------------------------------------------------------------------------------------


def test_hooks_in_a_session_see_whole_rows():
    model, prompt = tiny_model(), list(range(1, 40))
    seen = []

    def process(input_ids, scores):
        seen.append(input_ids.tolist())
        return against_the_last(input_ids, scores)

    hooks = {"logits_processor": process, "stopping_criteria": ends_on_multiples_of_seven}
    plain = run(model, [prompt], seed=3, **hooks)
    once, seen = seen, []
    with session(model) as kept:
        kept.prefill([prompt])
        options = {"seed": 3, "max_new_tokens": 12, "return_dict_in_generate": True}
        check_equal(kept.generate([prompt], **options, **hooks), plain)
    assert seen == once and seen[0] == [prompt]


# ---- what a hook is shown -------------------------------------------------------------------------------------------


def test_what_hooks_are_shown():
    model, seen, asked = fixed_logits_model([0.5, -1.0, 2.0, -3.0], pad_token_id=3), [], []

    def process(input_ids, scores, rows):
        seen.append((input_ids.tolist(), scores.clone(), rows))
        return scores + 1

    def stop(input_ids, scores, rows):
        asked.append((input_ids.tolist(), scores.clone(), rows.tolist()))
        return rows == len(asked)  # row 1 after its first token, row 2 after its second

    prompts = [[0, 1, 0], [0], [1, 1]]
    options = {"do_sample": False, "logit_bias": {0: 4.0}, "repetition_penalty": 2.0}
    run(model, prompts, **options, max_new_tokens=3, logits_processor=process, stopping_criteria=[stop])
    input_ids, scores, rows = seen[0]
    assert input_ids == [[0, 1, 0], [3, 3, 0], [3, 1, 1]]
    edited = [[2.25, -2.0, 2.0, -3.0], [2.25, -1.0, 2.0, -3.0], [4.5, -2.0, 2.0, -3.0]]
    assert scores.tolist() == edited and scores.dtype == torch.float32
    assert rows.tolist() == [0, 1, 2] and rows.dtype == torch.int64
    assert [(ids, rows.tolist()) for ids, _, rows in seen[1:]] == [
        ([[0, 1, 0, 0], [3, 1, 1, 0]], [0, 2]),
        ([[0, 1, 0, 0, 0]], [0]),
    ]
    # Criteria see the new token, and the scores as the processors left them.
    assert asked[0][0] == [[0, 1, 0, 0], [3, 3, 0, 0], [3, 1, 1, 0]]
    assert asked[0][1].tolist() == (torch.tensor(edited) + 1).tolist()
    assert [rows for _, _, rows in asked] == [[0, 1, 2], [0, 2], [0]]


def test_the_columns_are_those_of_the_result():
    model, widths = tiny_model(pad_token_id=0), []

    def process(input_ids, scores):
        widths.append(input_ids.shape[1])
        return scores

    # The longest row ends first, and padding of all rows stays: as in generate of Hugging Face.
    prompts = torch.tensor([[0, 0, 4, 5], [0, 0, 0, 6]])
    result = run(model, prompts, max_new_tokens=3, logits_processor=process)
    assert widths == [4, 5, 6] and result.sequences.shape[1] == 7


def test_rows_at_different_places_are_aligned_at_their_last_token():
    model, seen = tiny_model(), []

    def process(input_ids, scores, rows):
        seen.append((input_ids, rows.tolist()))
        return scores

    result = run(model, [[5], list(range(1, 10))], max_new_tokens=6, max_step_tokens=4, logits_processor=process)
    assert any(len(rows) == 2 for _, rows in seen)
    for row, prompt in enumerate([[5], list(range(1, 10))]):
        tokens = prompt + result.completions[row]
        shown = [ids[rows.index(row)].tolist() for ids, rows in seen if row in rows]
        assert [ids[-len(prompt) - i :] for i, ids in enumerate(shown)] == [tokens[: len(prompt) + i] for i in range(6)]


def test_copies_of_a_prompt_are_rows_of_their_own():
    rows_seen = []

    def process(input_ids, scores, rows):
        rows_seen.extend(rows.tolist())
        return scores

    run(tiny_model(), [[1, 2], [3]], num_return_sequences=3, max_new_tokens=4, logits_processor=process)
    assert sorted(rows_seen) == sorted(list(range(6)) * 4)


class WithRows:
    def __call__(self, input_ids, scores, rows):
        assert rows.tolist() == [0]
        return scores


class WithADefault:
    def __call__(self, input_ids, scores, factor=1.0, **keywords):
        return scores * factor


class ModuleWithRows(torch.nn.Module):
    def forward(self, input_ids, scores, rows=None):
        assert rows.tolist() == [0]
        return scores


def with_anything(*args, **keywords):
    assert len(args) == 2 and not keywords
    return args[1]


def with_a_third(input_ids, scores, numbers):
    assert numbers.tolist() == [0]
    return scores


@pytest.mark.parametrize(
    "hook",
    [
        WithRows(),
        WithRows().__call__,
        WithADefault(),
        ModuleWithRows(),
        with_anything,
        with_a_third,
        functools.partial(with_a_third),
        functools.partial(lambda prefix, input_ids, scores: scores, "bound"),
        functools.wraps(with_a_third)(lambda *args: with_a_third(*args)),
    ],
)
def test_row_numbers_come_where_a_third_argument_is_taken(hook):
    model = tiny_model()
    check_equal(run(model, [[1, 2]], seed=5, logits_processor=hook), run(model, [[1, 2]], seed=5))


def test_the_mode_in_which_hooks_run():
    model, layer = tiny_model(), torch.nn.Linear(97, 97, bias=False)
    modes = []

    def process(input_ids, scores):
        modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            modes.append(layer(scores).dtype)
        with torch.enable_grad():
            return scores + (scores * layer.weight.new_zeros((), requires_grad=True)).detach() + layer.weight.sum() * 0

    with torch.inference_mode(), torch.autocast("cpu"):
        hooked = run(model, [[1]], max_new_tokens=1, seed=5, logits_processor=process)
    assert modes == [(False, False, False), torch.bfloat16]
    check_equal(hooked, run(model, [[1]], max_new_tokens=1, seed=5))


# ---- criteria -------------------------------------------------------------------------------------------------------


def test_a_criterion_ends_rows_as_stop_token_ids_do():
    model, ends = tiny_model(), [3, 13, 23, 33, 43, 53]

    def stop(input_ids, scores):
        return torch.isin(input_ids[:, -1], torch.tensor(ends))

    options = {"seed": SEEDS, "max_new_tokens": 40}
    result = run(model, stopping_criteria=stop, **options)
    by_ids = run(model, stop_token_ids=ends, **options)
    assert "stop" in result.finish_reasons and set(by_ids.stop_reasons) & set(ends)
    check_equal(result, dataclasses.replace(by_ids, stop_reasons=[None] * len(PROMPTS)))


def test_any_criterion_ends_a_row_and_eos_is_looked_at_first():
    model = fixed_logits_model([1.0, 2.0])
    criteria = [never, lambda input_ids, scores: True]
    result = run(model, [[0], [0]], do_sample=False, stopping_criteria=criteria)
    assert (result.completions, result.finish_reasons) == ([[1], [1]], ["stop", "stop"])
    result = run(model, [[0]], do_sample=False, stopping_criteria=criteria, eos_token_id=1)
    assert (result.completions, result.finish_reasons) == ([[1]], ["eos"])


@pytest.mark.parametrize("answer", [True, np.bool_(True), torch.tensor(True)])
def test_one_answer_is_for_all_rows_that_are_shown(answer):
    result = run(tiny_model(), stopping_criteria=lambda input_ids, scores: answer)
    assert result.finish_reasons == ["stop"] * 4 and result.lengths == [1] * 4
    waiting = run(tiny_model(), max_running=2, stopping_criteria=lambda input_ids, scores: answer)
    assert waiting.finish_reasons == ["stop"] * 4 and waiting.lengths == [1] * 4


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["logits_processor", "stopping_criteria"])
def test_what_a_hook_raises_leaves_generate(keyword):
    model, calls = tiny_model(), []

    def raises(input_ids, scores):
        calls.append(input_ids.shape)
        if len(calls) == 3:
            raise KeyError("of the user's")
        return scores if keyword == "logits_processor" else False

    with pytest.raises(KeyError, match="of the user's") as caught:
        run(model, **{keyword: raises})
    assert len(calls) == 3
    assert "raises" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    check_equal(run(model, seed=SEEDS), run(model, seed=SEEDS, **{keyword: nothing if "log" in keyword else never}))


def test_a_hook_that_raises_ends_its_own_call_only():
    model = tiny_model()
    calls = []

    def raises(input_ids, scores):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("mine")
        return scores

    options = {"seed": 5, "max_new_tokens": 12}
    one, other = begun(model, [[1, 2], [3]], logits_processor=raises, **options), begun(model, [[4, 5]], **options)
    while other.advance():  # steps the rows of both
        pass
    assert other.tokens(0) == run(model, [[4, 5]], seed=5).completions[0]
    assert one.finish_reason(0) == one.finish_reason(1) == "cancelled" and len(one.tokens(0)) == 1
    with pytest.raises(RuntimeError, match="mine"):
        one.advance()
    assert not one.advance()
    assert one._engine.counters()["num_used_blocks"] == 0


def test_ctrl_c_in_a_hook_of_another_call_is_not_that_calls_error():
    model, calls = tiny_model(), []

    def interrupted_once(input_ids, scores):
        calls.append(input_ids.shape[1])
        if len(calls) == 2:
            raise KeyboardInterrupt  # as Python does at Ctrl-C, on the main thread
        return scores

    options = {"seed": 5, "max_new_tokens": 12}
    one = begun(model, [[1, 2], [3]], logits_processor=interrupted_once, **options)
    other = begun(model, [[4, 5]], **options)
    other.advance()
    with pytest.raises(KeyboardInterrupt):
        other.advance()
    with one:
        while one.advance():
            pass
    assert [one.tokens(0), one.tokens(1)] == run(model, [[1, 2], [3]], seed=5).completions
    assert calls[1] == calls[2]  # asked again


def test_ctrl_c_in_a_hook_ends_its_call():
    def interrupted(input_ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model(), logits_processor=interrupted)


def test_threads_with_hooks_of_their_own():
    model, results, errors = tiny_model(), {}, {}

    def work(i):
        def process(input_ids, scores):
            if i % 4 == 3 and input_ids.shape[1] > 8 + i:
                raise ValueError(f"thread {i}")
            scores[:, i] += 3.0
            return scores

        prompts = [[i + 1, i + 2], [i + 3] * (i + 1)]
        try:
            results[i] = run(model, prompts, seed=i, max_new_tokens=20, logits_processor=process).completions
        except ValueError as error:
            errors[i] = str(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == {3: "thread 3", 7: "thread 7"} and sorted(results) == [0, 1, 2, 4, 5, 6]
    for i, completions in results.items():
        prompts = [[i + 1, i + 2], [i + 3] * (i + 1)]
        assert completions == run(model, prompts, seed=i, max_new_tokens=20, logit_bias={i: 3.0}).completions


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, "returned None; return float32 [2, 97] on cpu"),
        (3.5, TypeError, "returned something of type float; return float32 [2, 97]"),
        (torch.zeros(2, 97, dtype=torch.float64), TypeError, "returned torch.float64; return float32 [2, 97]"),
        (torch.zeros(2, 96), ValueError, "returned the shape [2, 96] on cpu; return float32 [2, 97]"),
        (torch.zeros(97), ValueError, "returned the shape [97] on cpu; return float32 [2, 97]"),
        (torch.zeros(2, 97, device="meta"), ValueError, "returned the shape [2, 97] on meta; return float32 [2, 97]"),
    ],
)
def test_what_a_processor_may_not_return(result, error, message):
    def mine(input_ids, scores):
        return result

    with pytest.raises(error) as caught:
        run(tiny_model(), [[1], [2]], logits_processor=[nothing, mine, nothing])
    assert str(caught.value).startswith("The logits processor ") and message in str(caught.value)
    assert "mine" in str(caught.value)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, "returned None; return a bool, or a tensor of bools"),
        (1, TypeError, "returned something of type int; return a bool"),
        (torch.tensor([1, 0]), TypeError, "returned a tensor of torch.int64; return a bool"),
        (torch.tensor([True]), ValueError, "returned the shape [1]; return a bool, or one for each of the 2 rows"),
        (torch.tensor([[True], [True]]), ValueError, "returned the shape [2, 1]; return a bool"),
    ],
)
def test_what_a_criterion_may_not_return(result, error, message):
    with pytest.raises(error) as caught:
        run(tiny_model(), [[1], [2]], stopping_criteria=lambda *_: result)
    assert message in str(caught.value)


@pytest.mark.parametrize("keyword", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("given", [3, "never", [nothing, None], [[nothing, {}]]])
def test_what_cannot_be_called_is_refused(keyword, given):
    with pytest.raises(TypeError, match=f"{keyword} holds .* which cannot be called; give a callable"):
        run(tiny_model(), **{keyword: given})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"seed": SEEDS}])
def test_a_row_that_a_processor_spoils_ends_in_an_error_and_the_others_go_on(value, options):
    model = tiny_model()

    def spoil(input_ids, scores, rows):
        scores[rows == 1, 50] = value
        return scores

    result = run(model, logits_processor=spoil, stopping_criteria=never, **options)
    assert result.finish_reasons == ["length", "error", "length", "length"]
    assert "NaN or +inf after the logits processors" in result.errors[1] and result.lengths[1] == 0
    plain = run(model, **options)
    assert [result.completions[i] for i in (0, 2, 3)] == [plain.completions[i] for i in (0, 2, 3)]


def test_a_processor_that_forbids_everything():
    with pytest.raises(GenerationError, match="The options and logits processors forbid every token"):
        generate(tiny_model(), [[1]], logits_processor=lambda _, scores: scores - torch.inf)


def test_a_processor_may_mend_what_the_model_gives():
    broken = fixed_logits_model([0.0, float("nan"), 2.0, 1.0])
    result = run(broken, [[0]], do_sample=False, max_new_tokens=2, logits_processor=lambda _, s: s.nan_to_num(0.0))
    assert result.completions == [[2, 2]] and result.logprobs.isnan().all()
    assert not result.processed_logprobs.isnan().any()
    with pytest.raises(GenerationError, match=r"lm_head\.weight holds such values"):
        generate(broken, [[0]], logits_processor=nothing)


@pytest.mark.parametrize("what", ["generate", "score", "advance"])
def test_a_hook_may_not_wait_for_its_own_step(what):
    model, running = tiny_model(), []
    ways = {
        "generate": lambda: generate(model, [[1]], max_new_tokens=1),
        "score": lambda: score(model, [[1, 2]]),
        "advance": lambda: running[0].advance(),
    }

    def nested(input_ids, scores):
        ways[what]()
        return scores

    running.append(begun(model, [[1, 2]], logits_processor=nested))
    with pytest.raises(RuntimeError, match="used the engine of the model that is just generating with it"):
        running[0].advance()


def test_a_hook_may_use_the_model_itself_and_another_engine():
    model, other = tiny_model(), tiny_model()

    def process(input_ids, scores):
        assert len(generate(other, [[1]], max_new_tokens=1)[0]) == 2
        return model(input_ids).logits[:, -1]

    result = run(model, [[1, 2]], do_sample=False, logits_processor=process)
    assert result.completions == run(model, [[1, 2]], do_sample=False).completions


# ---- a good guest ---------------------------------------------------------------------------------------------------


def test_hooks_are_let_go():
    class Hook:
        def __call__(self, input_ids, scores):
            return scores

    def of_a_call(end):
        hook = Hook()
        generation = begun(tiny_model(), [[1]], logits_processor=hook)
        end(generation)
        return weakref.ref(hook)

    ended = [of_a_call(lambda g: [None for _ in iter(g.advance, False)]), of_a_call(Generation.advance)]
    gc.collect()
    assert [hook() for hook in ended] == [None, None]


def test_a_call_without_hooks_beside_one_with_is_not_shown_to_it():
    model, seen = tiny_model(), []

    def process(input_ids, scores, rows):
        seen.append(rows.tolist())
        return scores * -1

    hooked = begun(model, [[1, 2], [3]], logits_processor=process, seed=5, max_new_tokens=12)
    plain = begun(model, PROMPTS, seed=5, max_new_tokens=12)
    while plain.advance():
        pass
    assert [plain.tokens(row) for row in range(4)] == run(model, PROMPTS, seed=5).completions
    assert seen == [[0, 1]] * 12 and hooked.finish_reason(0) == "length"
