"""A row's tokens depend on its prompt, its options, its seed and the weights alone; and what a result looks like."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import fixed_logits_model, table_model, tiny_model
from plain_loop import prompts_without_ties

from demiurgic import GenerationConfig, generate
from demiurgic.engine import Generation

# On the reference kernels the sums of a larger batch differ in their last bits. So log-probabilities are compared
# within this; tokens are equal because these draws, and the largest logits of greedy rows, are far from any border.
CLOSE = {"rtol": 0, "atol": 1e-4, "equal_nan": True}
BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the cache of tiny_model: k and v, layers, tokens, heads, head_dim, float32

GREEDY = {"do_sample": False, "return_dict_in_generate": True, "max_new_tokens": 20}
SAMPLED = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "presence_penalty": 0.2,
    "no_repeat_ngram_size": 4,
    "return_dict_in_generate": True,
    "max_new_tokens": 20,
}
ENDS = {"eos_token_id": [0, 1, 2, 3, 4, 5, 6, 7], "stop_token_ids": [90, 91, 92, 93]}
PROMPTS = [[3], list(range(20, 37)), [5, 6, 5, 6, 7], list(range(2, 60)), [88, 1], [8] * 16]
SEEDS = [11, 12, 13, 14, 15, 16]
OPTIONS = {
    "sampled": SAMPLED,
    "sampled, ends": SAMPLED | ENDS,
    "greedy": GREEDY,
    "greedy, ends": GREEDY | ENDS,
}


def prompts_for(options, model):
    return PROMPTS if options.get("do_sample", True) else prompts_without_ties(model, (1, 17, 5, 58, 2, 16), 20)


def rows_of(result):
    return list(zip(result.completions, result.finish_reasons, result.seeds, strict=True))


def check_same(one, other):
    assert rows_of(one) == rows_of(other)
    for name in ("logprobs", "processed_logprobs"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **CLOSE)


def each_alone(model, prompts, seeds, options):
    """The rows of calls with one prompt each."""
    results = [
        generate(model, [prompt], [[1] * len(prompt)], seed=[seed], **options)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return [row for result in results for row in rows_of(result)]


def run(model, prompts, *, keywords=None, **options):
    """The result, and the engine's counters once every row has ended."""
    options = {name: value for name, value in options.items() if name != "return_dict_in_generate"}
    config = GenerationConfig(**options)
    with Generation(model, prompts, config=config, want_logprobs=True, **(keywords or {})) as generation:
        while generation.advance():
            pass
        return generation.result(), generation._engine.counters()


def padded(prompts, pad, left):
    """int64 [B, T] and its mask."""
    width = max(len(prompt) for prompt in prompts)
    ids, mask = [], []
    for prompt in prompts:
        fill, ones = width - len(prompt), [1] * len(prompt)
        ids.append([pad] * fill + prompt if left else prompt + [pad] * fill)
        mask.append([0] * fill + ones if left else ones + [0] * fill)
    return torch.tensor(ids), torch.tensor(mask)


# ---- the same tokens, however they are computed ------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", ["ragged", "left", "right", "left, masked", "right, masked", "pad is EOS, masked"])
def test_a_row_alone_is_the_row_in_a_batch(form, options):
    options, pad = OPTIONS[options], 96
    model = tiny_model(pad_token_id=pad, eos_token_id=pad if "EOS" in form else None)
    prompts = prompts_for(options, model)
    assert not any(pad in (prompt[0], prompt[-1]) for prompt in prompts)
    expected = each_alone(model, prompts, SEEDS, options)
    ids, mask = padded(prompts, pad, left=not form.startswith("right"))
    call = (prompts,) if form == "ragged" else (ids, mask) if form.endswith("masked") else (ids,)
    result = generate(model, *call, seed=SEEDS, **options)
    assert rows_of(result) == expected
    assert result.prompt_lengths == [len(prompt) for prompt in prompts]


def test_neighbours_of_other_lengths_and_options_do_not_matter():
    model = tiny_model()
    expected, _ = run(model, [PROMPTS[1]], seed=[5], **SAMPLED)
    with Generation(model, PROMPTS, config=GenerationConfig(seed=1, temperature=2.0, max_new_tokens=50)) as neighbours:
        for _ in range(3):
            neighbours.advance()
        result, counters = run(model, [PROMPTS[1]], seed=[5], **SAMPLED)
        assert counters["num_used_blocks"] > 0  # of the neighbours, on the same engine
    check_same(result, expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_without_the_cache_as_with_it(options):
    model, options = tiny_model(), OPTIONS[options]
    prompts = prompts_for(options, model)
    cached, with_cache = run(model, prompts, seed=SEEDS, **options)
    computed, without = run(model, prompts, seed=SEEDS, use_cache=False, **options)
    check_same(computed, cached)
    lengths = zip(cached.prompt_lengths, cached.lengths, strict=True)
    assert without["num_computed_tokens"] == sum(sum(range(p, p + n)) for p, n in lengths)
    assert with_cache["num_computed_tokens"] == sum(cached.prompt_lengths) + sum(n - 1 for n in cached.lengths)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("max_step_tokens", [1, 5, 16, 33])
@pytest.mark.parametrize("use_cache", [True, False])
def test_chunks_of_a_prompt_as_the_whole(max_step_tokens, use_cache, options):
    model, options = tiny_model(), OPTIONS[options] | {"max_new_tokens": 8}
    prompts = prompts_for(options, model)
    whole, few_steps = run(model, prompts, seed=SEEDS, **options)
    chunked, many_steps = run(
        model, prompts, seed=SEEDS, use_cache=use_cache, keywords={"max_step_tokens": max_step_tokens}, **options
    )
    check_same(chunked, whole)
    assert many_steps["num_steps"] > few_steps["num_steps"]


@pytest.mark.parametrize("max_step_tokens", [6, 16, 50])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_step_computes_at_most_max_step_tokens(use_cache, max_step_tokens):
    config = GenerationConfig(seed=0, max_new_tokens=5, use_cache=use_cache)
    with Generation(tiny_model(), PROMPTS, config=config, max_step_tokens=max_step_tokens) as generation:
        done, most, under_way = 0, 0, True
        while under_way:
            under_way = generation.advance()
            done, before = generation._engine.counters()["num_computed_tokens"], done
            most = max(most, done - before)
    assert most == max_step_tokens


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_as_separate_calls_with_their_seeds(options):
    model, options = tiny_model(), OPTIONS[options]
    prompts = prompts_for(options, model)[:4]
    copies = generate(model, prompts, seed=7, num_return_sequences=3, **options)
    assert len(set(copies.seeds)) == 12
    assert rows_of(copies) == each_alone(model, [p for p in prompts for _ in range(3)], copies.seeds, options)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("keywords", [{}, {"max_step_tokens": 7}, {"max_running": 1}, {"max_running": 2}])
def test_copies_compute_their_prompt_once(length, keywords):
    # The first copy computes all of it; each other its last token, whose logits it needs; and all but the last new one.
    copies, new, prompt = 5, 4, list(range(40, 40 + length))
    result, counters = run(
        tiny_model(), [prompt], keywords=keywords, num_return_sequences=copies, max_new_tokens=new, seed=1
    )
    assert result.lengths == [new] * copies
    assert counters["num_computed_tokens"] == length + (copies - 1) + copies * (new - 1)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
def test_preempted_as_not(use_cache, copies, options):
    # Six rows of up to 78 tokens in the room of the longest and little more.
    model, options = tiny_model(), OPTIONS[options]
    prompts = prompts_for(options, model)
    most = max(len(prompt) for prompt in prompts) + options["max_new_tokens"] - 1
    room = -(-most // 16) * BLOCK_BYTES
    options = options | {"seed": SEEDS, "num_return_sequences": copies, "use_cache": use_cache}
    expected, undisturbed = run(model, prompts, **options)
    assert undisturbed["num_preemptions"] == 0
    preemptions = 0
    for cache_bytes in (room, room + 2 * BLOCK_BYTES):
        result, counters = run(model, prompts, keywords={"cache_bytes": cache_bytes}, **options)
        check_same(result, expected)
        assert counters["cache_bytes"] <= cache_bytes
        assert counters["num_used_blocks"] == 0
        preemptions += counters["num_preemptions"]
    assert preemptions > 0 or "eos_token_id" in options  # rows that end soon may all fit


@pytest.mark.parametrize("options", OPTIONS)
def test_one_row_at_a_time_as_many(options):
    model, options = tiny_model(), OPTIONS[options]
    prompts = prompts_for(options, model)
    together, few_steps = run(model, prompts, seed=SEEDS, **options)
    for max_running in (1, 2, 5):
        queued, many_steps = run(model, prompts, seed=SEEDS, keywords={"max_running": max_running}, **options)
        check_same(queued, together)
        assert many_steps["num_steps"] >= few_steps["num_steps"]
        if max_running == 1:
            assert many_steps["num_steps"] == sum(together.lengths)


def test_finished_rows_leave_and_waiting_ones_enter():
    # The token t is followed by t + 1, and 9 ends a row: prompts of known, different lengths to go.
    table = torch.full((10, 10), -20.0)
    table[range(9), range(1, 10)] = 20.0
    model = table_model(table)
    to_go = [2, 8, 1, 5, 3]
    generation = Generation(
        model,
        [[9 - left] for left in to_go],
        config=GenerationConfig(do_sample=False, eos_token_id=9, max_new_tokens=50),
        max_running=2,
    )
    seen = []
    with generation:
        while True:
            under_way = generation.advance()
            seen.append([len(generation.tokens(row)) for row in range(5)])
            if not under_way:
                break
    # Two at a time: 0 and 1; at its end 0 makes place for 2, that for 3, ...
    assert seen == [
        [1, 1, 0, 0, 0],
        [2, 2, 0, 0, 0],
        [2, 3, 1, 0, 0],
        [2, 4, 1, 1, 0],
        [2, 5, 1, 2, 0],
        [2, 6, 1, 3, 0],
        [2, 7, 1, 4, 0],
        [2, 8, 1, 5, 0],
        [2, 8, 1, 5, 1],
        [2, 8, 1, 5, 2],
        [2, 8, 1, 5, 3],
    ]
    assert generation.result().finish_reasons == ["eos"] * 5


def test_a_finished_row_frees_its_blocks_for_the_others():
    model = tiny_model()
    config = GenerationConfig(seed=0, max_length=40)
    with Generation(model, [[1] * 38, [1]], config=config) as generation:
        generation.advance()
        assert generation._engine.counters()["num_used_blocks"] == 3 + 1
        generation.advance()
        assert generation.finish_reason(0) == "length"
        assert generation._engine.counters()["num_used_blocks"] == 1


@pytest.mark.parametrize(
    "ids", [torch.int64, torch.int32, torch.int16, torch.uint8, "numpy", "list", "tuple", "tensors"]
)
def test_every_form_of_ids_gives_the_same(ids):
    model, rows = tiny_model(), [[3, 4, 5], [6, 7, 8]]
    expected = generate(model, rows, seed=1, max_new_tokens=5)
    forms = {
        "numpy": lambda: torch.tensor(rows).numpy(),
        "list": lambda: rows,
        "tuple": lambda: tuple(map(tuple, rows)),
        "tensors": lambda: [torch.tensor(row) for row in rows],
    }
    given = forms[ids]() if ids in forms else torch.tensor(rows, dtype=ids)
    assert torch.equal(generate(model, given, seed=1, max_new_tokens=5), expected)
    one = generate(model, given[0], seed=1, max_new_tokens=5)  # one prompt without a batch around it
    assert torch.equal(one, expected[:1])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    masked = generate(model, rows, mask, seed=1, max_new_tokens=5)
    for dtype in (torch.bool, torch.float32, torch.uint8):
        assert torch.equal(generate(model, given, mask.to(dtype), seed=1, max_new_tokens=5), masked)


@pytest.mark.parametrize(
    "device", [pytest.param("cuda", marks=pytest.mark.cuda), pytest.param("mps", marks=pytest.mark.mps)]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_on_other_devices(device, options):
    model, options = tiny_model().to(device), OPTIONS[options]
    prompts = prompts_for(options, model)
    expected = each_alone(model, prompts, SEEDS, options)
    for keywords in ({}, {"max_step_tokens": 7}, {"max_running": 2}, {"cache_bytes": 6 * BLOCK_BYTES}):
        result, counters = run(model, prompts, keywords=keywords, seed=SEEDS, **options)
        assert rows_of(result) == expected and result.sequences.device.type == device
        assert counters["num_used_blocks"] == 0


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_batch_is_its_rows_alone(data):
    model = tiny_model()
    number = st.integers
    prompts = data.draw(st.lists(st.lists(number(0, 96), min_size=1, max_size=40), min_size=1, max_size=5))
    copies = data.draw(number(1, 3))
    options = {
        "max_new_tokens": data.draw(number(0, 12)),
        "do_sample": True,
        "temperature": data.draw(st.sampled_from([0.5, 1.0, 2.0])),
        "top_k": data.draw(st.sampled_from([0, 3, 200])),
        "top_p": data.draw(st.sampled_from([None, 0.7])),
        "min_p": data.draw(st.sampled_from([None, 0.05])),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.3])),
        "frequency_penalty": data.draw(st.sampled_from([0.0, 0.5])),
        "min_length": data.draw(st.sampled_from([0, 20])),
        "eos_token_id": data.draw(st.sampled_from([[], list(range(0, 97, 5))])),
        "return_dict_in_generate": True,
    }
    keywords = {
        "max_running": data.draw(st.sampled_from([1, 2, 256])),
        "max_step_tokens": data.draw(st.sampled_from([3, 20, 512])),
        "use_cache": data.draw(st.booleans()),
        "cache_bytes": data.draw(st.sampled_from([None, 5 * BLOCK_BYTES])),
    }
    result = generate(model, prompts, seed=data.draw(number(0, 2**64 - 1)), num_return_sequences=copies,
                      **options, **keywords)  # fmt: skip
    repeated = [prompt for prompt in prompts for _ in range(copies)]
    assert rows_of(result) == each_alone(model, repeated, result.seeds, options)


# ---- the layout of a result --------------------------------------------------------------------------------


def counting_model(**config):
    """Greedy text of this model counts on: 1 2 3 ... 9, and 9 again."""
    table = torch.full((10, 10), -20.0)
    table[range(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]] = 20.0
    return table_model(table, **config)


# prompts, mask, options, sequences, lengths, reasons
LAYOUTS = {
    "lengths": ([[1, 2], [3, 4]], None, {}, [[1, 2, 3, 4, 5], [3, 4, 5, 6, 7]], [3, 3], "ll"),
    "one prompt": ([1, 2], None, {}, [[1, 2, 3, 4, 5]], [3], "l"),
    "ragged, pad 0": ([[1], [3, 4]], None, {}, [[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]], [3, 3], "ll"),
    "ragged, pad 8": ([[1], [3, 4]], None, {"pad_token_id": 8}, [[8, 1, 2, 3, 4], [3, 4, 5, 6, 7]], [3, 3], "ll"),
    "right-padded": (
        [[1, 0, 0], [3, 4, 5]], [[1, 0, 0], [1, 1, 1]], {}, [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8]], [3, 3], "ll"),
    "masked on both sides": ([[7, 1, 7, 7]], [[0, 1, 0, 0]], {}, [[0, 0, 0, 1, 2, 3, 4]], [3], "l"),
    "all columns padded": (
        [[0, 0, 1], [0, 2, 3]], None, {"pad_token_id": 0}, [[0, 0, 1, 2, 3, 4], [0, 2, 3, 4, 5, 6]], [3, 3], "ll"),
    "eos": ([[1], [3]], None, {"eos_token_id": 5}, [[1, 2, 3, 4], [3, 4, 5, 5]], [3, 2], "le"),
    "eos and pad": (
        [[1], [3]], None, {"eos_token_id": 5, "pad_token_id": 0}, [[1, 2, 3, 4], [3, 4, 5, 0]], [3, 2], "le"),
    "eos list": (
        [[1], [3], [6]], None, {"eos_token_id": [7, 4]}, [[1, 2, 3, 4], [3, 4, 7, 7], [6, 7, 7, 7]], [3, 1, 1], "eee"),
    "no eos": ([[3]], None, {"eos_token_id": []}, [[3, 4, 5, 6]], [3], "l"),
    "all end early": ([[4], [3]], None, {"eos_token_id": 5}, [[4, 5, 5], [3, 4, 5]], [1, 2], "ee"),
    "stop": ([[1], [3]], None, {"stop_token_ids": [5, 6]}, [[1, 2, 3, 4], [3, 4, 5, 0]], [3, 2], "ls"),
    "eos before stop": ([[4]], None, {"stop_token_ids": [5], "eos_token_id": [5]}, [[4, 5]], [1], "e"),
    "eos in the prompt": ([[5, 1]], None, {"eos_token_id": 5}, [[5, 1, 2, 3, 4]], [3], "l"),
    "eos as the last": ([[2]], None, {"eos_token_id": 5}, [[2, 3, 4, 5]], [3], "e"),
    "copies": ([[1], [3]], None, {"num_return_sequences": 2},
               [[1, 2, 3, 4], [1, 2, 3, 4], [3, 4, 5, 6], [3, 4, 5, 6]], [3, 3, 3, 3], "llll"),
    "nothing new": ([[1, 2], [3]], None, {"max_new_tokens": 0}, [[1, 2], [0, 3]], [0, 0], "ll"),
    "max_length": ([[1, 2], [3]], None, {"max_length": 3}, [[1, 2, 3, 0], [0, 3, 4, 5]], [1, 2], "ll"),
    "max_length counts no padding": (
        [[0, 0, 1], [3, 4, 5]], [[0, 0, 1], [1, 1, 1]], {"max_length": 4},
        [[0, 0, 1, 2, 3, 4], [3, 4, 5, 6, 0, 0]], [3, 1], "ll"),
    "max_length over max_new_tokens": ([[1]], None, {"max_length": 6}, [[1, 2, 3, 4, 5, 6]], [5], "l"),
    "max_length alone": ([[1]], None, {"max_length": 3, "max_new_tokens": None}, [[1, 2, 3]], [2], "l"),
    "at max_length": ([[1, 2, 3], [1]], None, {"max_length": 3}, [[1, 2, 3, 0, 0], [0, 0, 1, 2, 3]], [0, 2], "ll"),
    "past max_length": ([[1, 2, 3]], None, {"max_length": 2}, [[1, 2, 3]], [0], "l"),
}  # fmt: skip
REASONS = {"l": "length", "e": "eos", "s": "stop"}


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_layout(case, use_cache):
    prompts, mask, options, sequences, lengths, reasons = LAYOUTS[case]
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": use_cache} | options
    model = counting_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate(model, prompts, mask, **options).tolist() == sequences
        result = generate(model, prompts, mask, return_dict_in_generate=True, **options)
    assert result.sequences.dtype == torch.int64 and result.sequences.tolist() == sequences
    assert result.lengths == lengths
    assert result.finish_reasons == [REASONS[letter] for letter in reasons]
    assert result.errors == [None] * len(lengths)
    width = len(sequences[0]) - max(lengths)
    assert result.completions == [row[width : width + n] for row, n in zip(sequences, lengths, strict=True)]
    for values in (result.logprobs, result.processed_logprobs):
        assert values.dtype == torch.float32 and list(values.shape) == [len(lengths), max(lengths)]
        ended = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
        assert torch.equal(values.isnan(), ended)
        torch.testing.assert_close(values[~ended], torch.zeros(sum(lengths)), rtol=0, atol=1e-5)  # a sure thing
    assert set(result.timings) == {"prefill", "decode", "tokens_per_second"}
    assert all(math.isfinite(value) and value >= 0 for value in result.timings.values())
    assert (result.timings["prefill"] > 0) == (max(lengths) > 0)
    if use_cache:  # else every step computes the prompt
        assert (result.timings["decode"] > 0) == (max(lengths) > 1)


def test_min_length_counts_the_rows_own_tokens():
    # 4 would follow 3 and end the row, but both rows, whatever their padding, first need five tokens of their own.
    model = counting_model()
    result = generate(
        model, [[3], [1, 2, 3]], eos_token_id=4, min_length=5, do_sample=False, return_dict_in_generate=True,
        logit_bias={3: 1.0}, max_new_tokens=6,
    )  # fmt: skip
    for prompt, completion in zip([[3], [1, 2, 3]], result.completions, strict=True):
        assert 4 not in completion[: 4 - len(prompt)] and len(prompt) + len(completion) >= 5


def test_results_are_on_the_device_of_the_ids():
    model = tiny_model()
    for ids in ([[1, 2]], torch.tensor([[1, 2]])):
        result = generate(model, ids, seed=0, max_new_tokens=2, return_dict_in_generate=True)
        assert result.sequences.device == result.logprobs.device == torch.device("cpu")


def test_seeds_are_listed_and_timings_rate_all_rows():
    result = generate(tiny_model(), [[1], [2]], seed=[2**64 - 1, 4], max_new_tokens=5, return_dict_in_generate=True)
    assert result.seeds == [2**64 - 1, 4]
    seconds = result.timings["prefill"] + result.timings["decode"]
    assert result.timings["tokens_per_second"] == pytest.approx(10 / seconds)


# ---- what is padding ---------------------------------------------------------------------------------------

PAD = "begin or end in the id 0"
# ids, special ids of the model, options, lengths of the prompts taken from them, warned
PADDING = [
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 0}, {}, [1, 3], False),
    ([[5, 0, 0], [1, 2, 3]], {"pad_token_id": 0}, {}, [1, 3], False),
    ([[0, 5, 0], [1, 2, 3]], {"pad_token_id": 0}, {}, [1, 3], False),
    ([[5, 0, 5], [1, 2, 3]], {"pad_token_id": 0}, {}, [3, 3], False),  # inside a row it is a token
    ([[0, 0, 5]], {"pad_token_id": 0}, {}, [1], False),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": None}, {}, [3, 3], False),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": None}, {"pad_token_id": 0}, [1, 3], False),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 9}, {"pad_token_id": 0}, [1, 3], False),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 0}, {"pad_token_id": 9}, [3, 3], False),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 0, "eos_token_id": 0}, {}, [3, 3], True),
    ([[5, 0, 0], [1, 2, 3]], {"pad_token_id": 0, "eos_token_id": [7, 0]}, {}, [3, 3], True),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 0, "bos_token_id": 0}, {}, [3, 3], True),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 0}, {"eos_token_id": 0}, [3, 3], True),
    ([[0, 0, 5], [1, 2, 3]], {"pad_token_id": 0, "eos_token_id": 0}, {"eos_token_id": []}, [1, 3], False),
    ([[0, 0, 5]], {"pad_token_id": 0, "eos_token_id": 0}, {}, [3], False),  # one row needs no padding
    ([[5, 0, 5], [1, 2, 3]], {"pad_token_id": 0, "eos_token_id": 0}, {}, [3, 3], False),
    ([[0, 5], [1, 2, 3]], {"pad_token_id": 0}, {}, [1, 3], False),
]


@pytest.mark.parametrize(("ids", "special", "options", "lengths", "warned"), PADDING)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_is_padding_without_a_mask(as_tensor, ids, special, options, lengths, warned):
    if as_tensor and len({len(row) for row in ids}) > 1:
        pytest.skip("a tensor has rows of one length")
    model = fixed_logits_model([0.0] * 10, **special)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = generate(
            model, torch.tensor(ids) if as_tensor else ids, seed=0, max_new_tokens=1, return_dict_in_generate=True,
            **options,
        )  # fmt: skip
    assert result.prompt_lengths == lengths
    assert len(caught) == warned
    if warned:
        assert PAD in str(caught[0].message) and "attention_mask" in str(caught[0].message)
        assert caught[0].filename == __file__


def test_a_mask_decides_alone():
    # With a mask, ids that equal the pad's count where it says so; nothing is guessed and nothing warned.
    for special in (
        {"pad_token_id": 0},
        {"pad_token_id": 0, "eos_token_id": 0},
        {"pad_token_id": 0, "bos_token_id": 0},
    ):
        model = counting_model(**special)
        ids, mask = [[0, 0, 5], [1, 0, 0]], [[0, 1, 1], [1, 1, 0]]
        result = generate(model, ids, mask, do_sample=False, max_new_tokens=2, return_dict_in_generate=True)
        assert result.prompt_lengths == [2, 2]
        assert result.sequences.tolist() == [[0, 0, 5, 6, 7], [0, 1, 0, 1, 2]]
        all_of_it = generate(model, ids, [[1] * 3] * 2, do_sample=False, max_new_tokens=1, return_dict_in_generate=True)
        assert all_of_it.prompt_lengths == [3, 3]


def test_rows_of_the_pads_id_alone():
    model = counting_model(pad_token_id=0)
    assert generate(model, [[0, 0]], [[1, 1]], do_sample=False, max_new_tokens=2).tolist() == [[0, 0, 1, 2]]
    with pytest.raises(ValueError, match="The prompt of row 1 is empty"):
        generate(model, [[1, 2], [0, 0]])
