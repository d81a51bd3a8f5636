"""Speculation changes nothing but the time: the same tokens, log-probabilities, ends and errors, compared with ==."""

import copy
import random
import threading
from functools import cache

import pytest
import torch
from models import fixed_logits_model, table_model, tiny_model

from demiurgic import _C, GenerationConfig, GenerationError, generate
from demiurgic.engine import Generation

pytestmark = pytest.mark.native

VOCAB = 23  # so small that short runs often stand somewhere before
PIECES = [*"abcdefghijklmno", "ab", "\n", "def f():\n", "    x\n", "```\n", "``", "#", " "]
TEXT = _C.TokenBytes(PIECES, [], "raw")
NUMBERS = ["logprobs", "processed_logprobs", "top_logprobs", "top_logprob_ids", "entropies", "prompt_logprobs"]
NUMBERS += ["processed_top_logprobs", "processed_top_logprob_ids", "processed_entropies"]
BLOCK_BYTES = 2 * 2 * 16 * 2 * 8 * 4  # of the cache of tiny_model: k and v, layers, tokens, heads, head_dim, float32


@cache
def model():
    return tiny_model(vocab_size=VOCAB)


@cache
def narrow_model():
    return tiny_model(vocab_size=VOCAB).bfloat16()


@cache
def drafting_models():
    """One that agrees always, one often, one rarely; and one of other shapes."""
    often = copy.deepcopy(model())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in often.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    rarely = tiny_model(vocab_size=VOCAB, num_hidden_layers=1)
    other = tiny_model(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    return [model(), often, rarely, other.bfloat16()]


def run(target, prompts, options, *, limits=None, always=True, **speculation):
    """The result of one call and the counters of its engine at its end."""
    drafts = {"draft_model": speculation.pop("draft_model", None), "always_drafts": always}
    config = GenerationConfig(**options, **speculation)
    keywords = drafts | {"tokenizer": TEXT} | (limits or {})
    with Generation(target, prompts, config=config, want_logprobs=True, **keywords) as generation:
        while generation.advance():
            pass
        return generation.result(), generation._engine.counters()


def check_same(result, expected):
    assert result.completions == expected.completions
    assert result.finish_reasons == expected.finish_reasons
    assert result.errors == expected.errors
    assert result.stop_reasons == expected.stop_reasons
    if result.texts is not None and expected.texts is not None:
        assert result.texts == expected.texts
    assert torch.equal(result.sequences, expected.sequences)
    for name in NUMBERS:
        found, wanted = getattr(result, name), getattr(expected, name)
        assert (found is None) == (wanted is None), name
        assert found is None or torch.equal(found.nan_to_num(7), wanted.nan_to_num(7)), name


def random_prompt(dice):
    """Now and then of a few runs that come again and again."""
    length = dice.choice([1, 2, 7, 15, 16, 17, 40])
    if dice.random() < 0.5:
        return [dice.randrange(VOCAB) for _ in range(length)]
    runs = [[dice.randrange(VOCAB) for _ in range(dice.randint(1, 6))] for _ in range(2)]
    return [token for _ in range(length) for token in dice.choice(runs)][:length]


def random_options(dice):
    def some(**choices):
        return {name: dice.choice(values) for name, values in choices.items() if dice.random() < 0.25}

    ids = [dice.randrange(VOCAB) for _ in range(3)]
    options = {"max_new_tokens": dice.choice([0, 1, 2, 9, 24, 40]), "seed": dice.randrange(2**32), "eos_token_id": []}
    options |= {"do_sample": False} if dice.random() < 0.3 else {"temperature": dice.choice([0.3, 0.8, 1.5])}
    options |= some(
        top_k=[1, 5], top_p=[0.5, 1.0], typical_p=[0.6], min_p=[0.1], repetition_penalty=[1.3, 0.7],
        frequency_penalty=[0.4, -0.3], presence_penalty=[0.5], repetition_context_size=[3], penalize_prompt=[False],
        no_repeat_ngram_size=[1, 2, 4], logit_bias=[{ids[0]: 4.0}], bad_token_ids=[ids[:2]], stop_token_ids=[ids[1:]],
        eos_token_id=[ids[2:]], num_return_sequences=[2, 3], use_cache=[False],
        stop=[PIECES[ids[0]] + PIECES[ids[1]], [PIECES[ids[0]] + "a", PIECES[ids[2]] * 2]], include_stop=[True],
        stop_at=["function", "code_block"], stop_on_repetition=[2, 3], repetition_min_tokens=[4, 9],
        trim_repetition=[True], min_length=[3, 12], top_logprobs=[1, 4, 40], top_logprobs_mode=["processed", "both"],
        entropy=[True], prompt_logprobs=[True],
    )  # fmt: skip
    if not options.get("use_cache", True):  # each token computes all before it
        options["max_new_tokens"] %= 10
    return options | some(min_new_tokens=[min(5, options["max_new_tokens"])], max_length=[17, 33])


def random_limits(dice, options):
    """Sometimes a cache that is too small for all rows, short steps, few rows at a time."""
    blocks = 6 if options["max_new_tokens"] or "prompt_logprobs" in options else 1
    return {
        "cache_bytes": dice.choice([None, None, blocks * BLOCK_BYTES, 2 * blocks * BLOCK_BYTES]),
        "max_step_tokens": dice.choice([512, 512, 20, 5, 1]),
        "max_running": dice.choice([256, 256, 2, 1]),
    }


def random_speculation(dice):
    most = {"max_draft_tokens": dice.choice([1, 2, 5, 16, 128])}
    return most | ({"speculate": "ngram"} if dice.random() < 0.5 else {"draft_model": dice.choice(drafting_models())})


def check_random(number):
    """One configuration drawn from a number. How many drafts came, how many were accepted; 0 if by the clock."""
    dice = random.Random(number)
    options, prompts = random_options(dice), [random_prompt(dice) for _ in range(dice.choice([1, 1, 2, 4]))]
    limits, speculation = random_limits(dice, options), random_speculation(dice)
    if "max_length" in options:
        limits["cache_bytes"] = None  # prompts may be longer, and rows of any length fit
    target = narrow_model() if dice.random() < 0.2 else model()
    expected, _ = run(target, prompts, options, limits=limits)
    always = dice.random() < 0.8
    result, counters = run(target, prompts, options, limits=limits, always=always, **speculation)
    check_same(result, expected)
    assert counters["num_used_blocks"] == 0
    assert limits["cache_bytes"] is None or counters["cache_bytes"] <= limits["cache_bytes"]
    assert all(0 <= accepted <= drafted for accepted, drafted in zip(result.accepted, result.drafted, strict=True))
    return (sum(result.drafted), sum(result.accepted)) if always else (0, 0)


@pytest.mark.parametrize("first", range(0, 500, 50))
def test_random_configurations(first):
    counts = [check_random(number) for number in range(first, first + 50)]
    assert sum(drafted > accepted > 0 for drafted, accepted in counts) > 2  # it is not a test of steps without drafts


@pytest.mark.parametrize("isa", _C.isa_names())
def test_random_configurations_on_every_instruction_set(isa, monkeypatch):
    monkeypatch.setenv("DEMIURGIC_KERNELS", isa)
    counts = [check_random(number) for number in range(1000, 1020)]
    assert sum(accepted for _, accepted in counts) > 0


# ---- drafts: how many, where from, at what price ---------------------------------------------------------------------

CYCLE = [5, 6, 7, 8] * 5


def cyclic_model():
    """After each token comes the next of a cycle of four, almost surely."""
    table = torch.full((VOCAB, VOCAB), -20.0)
    for token in range(VOCAB):
        table[token, 5 + (token - 4) % 4] = 20.0
    return table_model(table)


def test_drafts_that_come_save_steps():
    options = {"max_new_tokens": 64, "do_sample": False}
    expected, plain = run(cyclic_model(), [CYCLE], options)
    result, counters = run(cyclic_model(), [CYCLE], options, speculate="ngram", max_draft_tokens=7)
    check_same(result, expected)
    # The prompt gives the first token, each step after it 8, and the last what is left: 7, by 6 drafts.
    assert (plain["num_steps"], counters["num_steps"]) == (64, 1 + 8)
    assert (result.drafted, result.accepted) == ([7 * 7 + 6], [7 * 7 + 6])
    assert counters["num_computed_tokens"] == plain["num_computed_tokens"] == 20 + 63


def test_refused_drafts_are_computed_and_counted():
    """A draft model of which each guess is wrong."""
    wrong = table_model(torch.roll(torch.eye(VOCAB) * 30, 9, dims=1))
    options = {"max_new_tokens": 10, "do_sample": False}
    expected, plain = run(cyclic_model(), [CYCLE], options)
    result, counters = run(cyclic_model(), [CYCLE], options, draft_model=wrong, max_draft_tokens=3)
    check_same(result, expected)
    # After the first token 9 come one by one; the drafts do not go past the last token that is looked at.
    assert (result.drafted, result.accepted) == ([3 * 6 + 2 + 1 + 0], [0])
    assert counters["num_computed_tokens"] == plain["num_computed_tokens"] + 21
    assert counters["num_steps"] == plain["num_steps"] == 10


@pytest.mark.parametrize("most", [1, 4, 16])
def test_a_step_has_no_more_drafts_than_it_may(most):
    result, counters = run(
        cyclic_model(), [CYCLE] * 3, {"max_new_tokens": 40, "do_sample": False},
        limits={"max_step_tokens": 9}, speculate="ngram", max_draft_tokens=most,
    )  # fmt: skip
    assert max(result.accepted) > 0
    assert counters["num_computed_tokens"] <= 9 * counters["num_steps"]


def test_the_clock_decides_how_many_but_not_what_comes():
    """Twice the same call without `always`: the tokens are the same, and where all drafts come there are some.

    At least one, however long anything takes: while nothing is known of a draft's price, it is taken for a tenth of a
    step. (A prompt of 8 tokens would make it known.)
    """
    model, options = cyclic_model(), {"max_new_tokens": 400, "seed": 3}
    expected, _ = run(model, [CYCLE[:7]], options)
    for _ in range(2):
        result, _ = run(model, [CYCLE[:7]], options, always=False, speculate="ngram")
        check_same(result, expected)
        assert result.accepted[0] > 0


def test_nobody_is_preempted_for_a_draft():
    """Two rows that come to need three blocks each, in a cache of four."""
    options = {"max_new_tokens": 30, "do_sample": False}
    expected, plain = run(model(), [CYCLE[:15]] * 2, options, limits={"cache_bytes": 4 * BLOCK_BYTES})
    result, drafted = run(
        model(),
        [CYCLE[:15]] * 2,
        options,
        limits={"cache_bytes": 4 * BLOCK_BYTES},
        speculate="ngram",
        max_draft_tokens=128,
    )
    check_same(result, expected)
    assert drafted["num_preemptions"] <= plain["num_preemptions"] == 1


def test_a_draft_model_takes_what_the_cache_leaves():
    """With no room for its cache it brings no drafts; with some, it does. Never more than `cache_bytes`."""
    options = {"max_new_tokens": 20, "seed": 1}
    expected, plain = run(model(), [CYCLE], options)
    drafted = []
    for room in (0, plain["cache_bytes"]):
        limits = {"cache_bytes": plain["cache_bytes"] + room}
        result, counters = run(model(), [CYCLE], options, limits=limits, draft_model=model())
        check_same(result, expected)
        assert counters["cache_bytes"] <= limits["cache_bytes"]
        drafted.append(result.drafted[0])
    assert drafted[0] == 0 < drafted[1]


def test_copies_calls_and_draft_models_share_an_engine():
    """Calls with and without drafts, of two draft models, under way together; one is cancelled."""
    configs = [
        ({"seed": 1, "num_return_sequences": 3}, {}),
        ({"seed": 2, "num_return_sequences": 2}, {"draft_model": drafting_models()[1]}),
        ({"seed": 3, "repetition_penalty": 1.2}, {"draft_model": drafting_models()[2]}),
        ({"seed": 4, "speculate": "ngram"}, {}),
        ({"seed": 5, "speculate": "ngram"}, {}),
    ]
    generations = [
        Generation(
            model(), [CYCLE, [1, 2]], config=GenerationConfig(max_new_tokens=30, **options), want_logprobs=True,
            always_drafts=True, **keywords,
        )
        for options, keywords in configs
    ]  # fmt: skip
    assert len({generation._engine for generation in generations}) == 1
    generations[-1].advance()
    generations[-1].__exit__()
    under_way = list(generations)
    while under_way:
        under_way = [generation for generation in under_way if generation.advance()]
    for generation, (options, _) in zip(generations[:-1], configs[:-1], strict=True):
        plain = {name: value for name, value in options.items() if name != "speculate"}
        check_same(generation.result(), run(model(), [CYCLE, [1, 2]], {"max_new_tokens": 30} | plain)[0])
    assert generations[0]._engine.counters()["num_used_blocks"] == 0


def test_threads_that_speculate_and_cancel():
    expected = {seed: run(model(), [CYCLE], {"max_new_tokens": 40, "seed": seed})[0] for seed in range(6)}
    problems = []

    def work(seed):
        try:
            config = GenerationConfig(max_new_tokens=40, seed=seed, **({"speculate": "ngram"} if seed % 2 else {}))
            drafts = {} if seed % 2 else {"draft_model": drafting_models()[1]}
            generation = Generation(model(), [CYCLE], config=config, want_logprobs=True, always_drafts=True, **drafts)
            with generation:
                while generation.advance():
                    if seed == 5 and len(generation.tokens(0)) > 10:
                        return
            check_same(generation.result(), expected[seed])
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads) and problems == []


# ---- beside other parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [1, 4])
def test_an_error_comes_at_the_same_token(bad):
    """The embedding of one token is NaN: the row ends where its logits are asked for, not where a draft was."""
    poisoned = copy.deepcopy(cyclic_model())
    with torch.no_grad():
        poisoned.model.embed_tokens.weight[5 + bad % 4] = torch.nan
    prompt = [6, 7, 8, 5, 6] if bad == 4 else [5, 7, 8, 5]
    prompt = [token for token in prompt if token != 5 + bad % 4]
    options = {"max_new_tokens": 20, "do_sample": False}
    expected, _ = run(poisoned, [prompt, [1]], options)
    assert "error" in expected.finish_reasons
    for speculation in ({"speculate": "ngram"}, {"draft_model": cyclic_model()}):
        check_same(run(poisoned, [prompt, [1]], options, **speculation)[0], expected)


def test_a_stream_gives_every_token_once():
    options = {"max_new_tokens": 40, "seed": 3, "speculate": "ngram"}
    events = list(model().stream([CYCLE], **options))
    assert [token for event in events for token in event.token_ids] == run(model(), [CYCLE], options)[0].completions[0]


def test_hooks_see_accepted_tokens_only():
    """A processor is shown each prefix once, in order, and its scores; what it does counts."""
    seen: list[list[list[int]]] = []

    def processor(ids, scores):
        seen[-1].append(ids[0].tolist())
        scores[:, 5] -= 2.0 * (ids == 5).sum(-1)
        return scores

    outputs = []
    for speculation in ({}, {"speculate": "ngram"}, {"draft_model": model()}):
        seen.append([])
        options = {"max_new_tokens": 40, "seed": 3, "return_dict_in_generate": True}
        outputs.append(generate(model(), [CYCLE], logits_processor=[processor], **options, **speculation))
    for output in outputs[1:]:
        check_same(output, outputs[0])
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 40


def test_numbers_told_of_every_position():
    told = {"top_logprobs": 3, "top_logprobs_mode": "both", "entropy": True, "prompt_logprobs": True}
    options = {"max_new_tokens": 30, "seed": 2, "num_return_sequences": 2} | told
    expected, _ = run(model(), [CYCLE, [3]], options)
    for speculation in ({"speculate": "ngram"}, {"draft_model": drafting_models()[1]}):
        result, _ = run(model(), [CYCLE, [3]], options, **speculation)
        check_same(result, expected)
        assert sum(result.accepted) > 0
        for name in ("top_logprobs", "top_logprob_ids", "processed_top_logprobs", "entropies", "prompt_logprobs"):
            assert torch.equal(getattr(result, name).nan_to_num(7), getattr(expected, name).nan_to_num(7)), name


def test_the_repetition_guard_ends_at_the_same_token():
    options = {"max_new_tokens": 200, "do_sample": False, "stop_on_repetition": 3, "repetition_min_tokens": 12}
    for trim in (False, True):
        expected, _ = run(cyclic_model(), [[9, 5]], options | {"trim_repetition": trim})
        result, _ = run(cyclic_model(), [[9, 5]], options | {"trim_repetition": trim}, speculate="ngram")
        assert expected.finish_reasons == ["repetition"] and result.accepted[0] > 0
        check_same(result, expected)


def test_generate_takes_a_draft_model():
    plain = generate(model(), [CYCLE], max_new_tokens=30, seed=1)
    assert torch.equal(generate(model(), [CYCLE], max_new_tokens=30, seed=1, draft_model=drafting_models()[1]), plain)
    assert torch.equal(model().generate([CYCLE], 30, seed=1, draft_model=model(), max_draft_tokens=2), plain)


def test_a_row_that_ends_in_an_error_raises_as_without():
    broken = fixed_logits_model([1.0, float("nan"), 0.0])
    with pytest.raises(GenerationError, match="Row 0 ended in an error: The model gave logits"):
        generate(broken, [0, 1, 0, 1], seed=0, speculate="ngram")
