"""What a result tells of the distributions: top_logprobs, entropy, prompt_logprobs; alone and in every company."""

import math

import pytest
import torch
from models import fixed_logits_model, tiny_model
from same_bits import check_same_bits

from demiurgic import GenerationConfig, GenerationError, generate, score
from demiurgic.engine import Generation

TOLD = {"top_logprobs": 4, "top_logprobs_mode": "both", "entropy": True, "prompt_logprobs": True}
FIELDS = [
    *("top_logprobs", "top_logprob_ids", "entropies"),
    *("processed_top_logprobs", "processed_top_logprob_ids", "processed_entropies", "prompt_logprobs"),
]


def ids(length, seed=0):
    return torch.randint(4, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run(model, prompts, keywords=None, **options):
    """The result, and the engine's counters at the end."""
    config = GenerationConfig(**({"max_new_tokens": 6, "seed": 3} | options))
    with Generation(model, prompts, config=config, want_logprobs=True, **(keywords or {})) as generation:
        while generation.advance():
            pass
        return generation.result(), generation._engine.counters()


def same(a, b):
    return a is None if b is None else torch.equal(a.nan_to_num(7), b.nan_to_num(7))


# probabilities of the model, options, k; ids and probabilities told of the raw and of the processed distribution
LISTS = [
    ([0.2, 0.5, 0.3], {}, 2, ([1, 2], [0.5, 0.3]), ([1, 2], [0.5, 0.3])),
    ([0.2, 0.5, 0.3], {"top_k": 2}, 3, ([1, 2, 0], [0.5, 0.3, 0.2]), ([1, 2, -1], [0.625, 0.375])),
    ([0.25, 0.25, 0.25, 0.25], {}, 3, ([0, 1, 2], [0.25] * 3), ([0, 1, 2], [0.25] * 3)),  # ties by the lowest id
    ([0.2, 0.4, 0.4], {"top_k": 1}, 2, ([1, 2], [0.4, 0.4]), ([1, 2], [0.5, 0.5])),
    ([0.2, 0.5, 0.3], {"bad_token_ids": [1]}, 2, ([1, 2], [0.5, 0.3]), ([2, 0], [0.6, 0.4])),
    ([0.2, 0.5, 0.3], {"temperature": 0.5}, 1, ([1], [0.5]), ([1], [0.25 / 0.38])),
    ([0.2, 0.5, 0.3], {"do_sample": False, "bad_token_ids": [1]}, 2, ([1, 2], [0.5, 0.3]), ([2, 0], [0.6, 0.4])),
    ([0.0, 0.5, 0.5], {}, 3, ([1, 2, -1], [0.5, 0.5]), ([1, 2, -1], [0.5, 0.5])),  # a token without a chance
    ([0.5, 0.5], {}, 4, ([0, 1, -1, -1], [0.5, 0.5]), ([0, 1, -1, -1], [0.5, 0.5])),  # more than the vocabulary has
]  # fmt: skip


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("probabilities", "options", "k", "raw", "processed"), LISTS)
def test_lists(probabilities, options, k, raw, processed):
    model = fixed_logits_model([math.log(p) if p else -math.inf for p in probabilities])
    options = {"temperature": 1, "top_k": 0, "top_p": 1, "max_new_tokens": 2, "seed": 0} | options
    for mode, expected in (("raw", [raw]), ("processed", [processed]), ("both", [raw, processed])):
        told = {"top_logprobs": k, "top_logprobs_mode": mode, "entropy": True}
        result = generate(model, [0], return_dict_in_generate=True, **options, **told)
        assert result.top_logprobs_mode == mode
        assert (result.processed_top_logprobs is None) == (mode != "both")
        for prefix, (tokens, chances) in zip(("", "processed_"), expected, strict=False):
            given_ids, numbers = (getattr(result, prefix + name) for name in ("top_logprob_ids", "top_logprobs"))
            assert given_ids.shape == numbers.shape == (1, 2, k)
            assert given_ids.tolist() == [[tokens] * 2]
            filled = len(chances)
            assert numbers[0, 0, :filled].exp().tolist() == pytest.approx(chances, abs=1e-6)
            assert numbers[..., filled:].isnan().all()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("weights", [[1], [1, 1], [0.9, 0.1], [0.5, 0.25, 0.25, 0], [1] * 300])
def test_entropy_is_minus_sum_p_log_p(weights):
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    model = fixed_logits_model(p.log())
    options = {"temperature": 1, "top_k": 0, "top_p": 1, "max_new_tokens": 1, "return_dict_in_generate": True}
    result = generate(model, [0], entropy=True, **options)
    assert result.entropies.item() == pytest.approx(-(p * p.clamp_min(1e-300).log()).sum().item(), abs=1e-5)
    assert result.top_logprobs is None and result.processed_entropies is None
    cut = generate(model, [0], entropy=True, top_logprobs_mode="processed", **(options | {"top_k": 1}))
    assert cut.entropies.item() == pytest.approx(math.log((p == p.max()).sum()), abs=1e-5)  # ties stay


def test_the_chosen_token_is_in_the_list_with_its_own_logprobs():
    result, _ = run(tiny_model(), [ids(5), ids(9)], **TOLD, max_new_tokens=20, top_k=4, top_p=1, temperature=2)
    for ids_name, numbers, own in (
        ("top_logprob_ids", "top_logprobs", "logprobs"),
        ("processed_top_logprob_ids", "processed_top_logprobs", "processed_logprobs"),
    ):
        found = getattr(result, ids_name) == result.sequences[:, 9:, None]
        assert found.any(-1).all() or ids_name == "top_logprob_ids"
        at = getattr(result, numbers)[found]
        assert torch.equal(at, getattr(result, own)[found.any(-1)])


def test_after_the_end_nothing_is_told():
    model = tiny_model()
    result, _ = run(model, [ids(5, i) for i in range(8)], **TOLD, max_new_tokens=30, eos_token_id=list(range(25)))
    assert len(set(result.lengths)) > 2
    for row, length in enumerate(result.lengths):
        assert (result.top_logprob_ids[row, :length] >= 0).all()
        assert (result.top_logprob_ids[row, length:] == -1).all()
        for name in ("top_logprobs", "entropies", "processed_entropies"):
            assert getattr(result, name)[row, :length].isfinite().all()
            assert getattr(result, name)[row, length:].isnan().all()
        assert (result.processed_top_logprob_ids[row, length:] == -1).all()


@pytest.mark.usefixtures("isa")
def test_asking_changes_nothing_else():
    model, prompts = tiny_model(), [ids(3), ids(140)]
    options = {"max_new_tokens": 12, "repetition_penalty": 1.2, "num_return_sequences": 3}
    (plain, before), (told, after) = run(model, prompts, **options), run(model, prompts, **options, **TOLD)
    assert plain.completions == told.completions
    assert same(plain.logprobs, told.logprobs) and same(plain.processed_logprobs, told.processed_logprobs)
    assert all(getattr(plain, name) is None for name in FIELDS)
    assert before["num_computed_tokens"] == after["num_computed_tokens"]


# ---- company: the same bits ----------------------------------------------------------------------------------------

LENGTHS = (1, 2, 17, 128, 129, 130, 300)
PROMPTS = [ids(n, n) for n in LENGTHS]
SEEDS = list(range(len(PROMPTS)))


def check_rows(found, model, prompts, seeds, copies=1):
    """Each row is what its own call tells."""
    for row, seed in enumerate(seeds):
        prompt = prompts[row // copies]
        own, _ = run(model, [prompt], seed=[seed], **TOLD)
        columns = {"prompt_logprobs": slice(found.sequences.shape[1] - 6 - len(prompt), None)}
        for name in FIELDS:
            values = getattr(found, name)[row, columns.get(name, slice(None))]
            assert same(values, getattr(own, name)[0]), (name, row)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    "keywords",
    [{}, {"max_step_tokens": 1}, {"max_step_tokens": 7}, {"max_step_tokens": 200}, {"max_running": 2}],
    ids=str,
)
def test_in_a_batch_in_chunks_some_at_a_time(keywords):
    model = tiny_model(max_position_embeddings=512)
    found, _ = run(model, PROMPTS, keywords, seed=SEEDS, **TOLD)
    check_rows(found, model, PROMPTS, SEEDS)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("use_cache", [True, False])
def test_copies_of_a_prompt_and_without_the_cache(use_cache):
    model = tiny_model(max_position_embeddings=512)
    prompts = [PROMPTS[i] for i in (0, 1, 2, 5)]
    found, counters = run(model, prompts, num_return_sequences=3, seed=5, use_cache=use_cache, **TOLD)
    check_rows(found, model, prompts, found.seeds, copies=3)
    if use_cache:  # the prompt once, its last token for each further copy, and five new ones that are looked at
        assert counters["num_computed_tokens"] == sum(len(p) + 2 + 3 * 5 for p in prompts)


@pytest.mark.usefixtures("isa")
def test_preempted():
    model = tiny_model(max_position_embeddings=512)
    block = 2 * 2 * 16 * 2 * 8 * 4
    for prompts in ([ids(300), ids(15), ids(14), ids(13)], [ids(15), ids(14), ids(300)]):  # in and after their prompts
        seeds, limits = SEEDS[: len(prompts)], {"cache_bytes": 21 * block, "max_step_tokens": 64}
        found, counters = run(model, prompts, limits, seed=seeds, **TOLD)
        assert counters["num_preemptions"] > 0
        check_rows(found, model, prompts, seeds)


# ---- prompt_logprobs -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(
    "options", [{}, {"max_new_tokens": 0}, {"max_length": 3}, {"num_return_sequences": 2}], ids=str
)
def test_prompt_logprobs_are_scores(options):
    model = tiny_model(max_position_embeddings=512)
    found, counters = run(model, PROMPTS, prompt_logprobs=True, **options)
    width = max(LENGTHS)
    assert found.prompt_logprobs.shape == (found.sequences.shape[0], width)
    assert found.prompt_logprobs[:, 0].isnan().all()
    copies = options.get("num_return_sequences", 1)
    expected = score(model, PROMPTS).repeat_interleave(copies, 0)
    assert same(found.prompt_logprobs[:, 1:], expected)
    assert found.finish_reasons == ["length"] * len(found.lengths)
    if options.get("max_new_tokens") == 0:
        assert found.lengths == [0] * len(PROMPTS)
        assert counters["num_computed_tokens"] == sum(n - 1 for n in LENGTHS)  # no token is predicted from the last


def test_prompt_logprobs_of_copies_that_generate_nothing_are_computed_once():
    model = tiny_model()
    found, counters = run(model, [ids(40), ids(1)], prompt_logprobs=True, max_new_tokens=0, num_return_sequences=3)
    assert same(found.prompt_logprobs[:, 1:], score(model, [ids(40), ids(1)]).repeat_interleave(3, 0))
    assert counters["num_computed_tokens"] == 39 + 2  # each copy goes through one token more


def test_a_step_holds_the_logits_of_128_scored_tokens():
    model = tiny_model(max_position_embeddings=1024)
    _, counters = run(model, [ids(1000)], {"max_step_tokens": 4096}, prompt_logprobs=True, max_new_tokens=1)
    assert counters["num_steps"] == 8
    _, counters = run(model, [ids(1000)], {"max_step_tokens": 4096}, max_new_tokens=1)
    assert counters["num_steps"] == 1


def test_padded_prompts():
    model, prompt = tiny_model(), ids(5)
    padded, mask = torch.tensor([[2, 2, *prompt, 2]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0]])
    config = GenerationConfig(max_new_tokens=2, prompt_logprobs=True, seed=0)
    with Generation(model, padded, mask, config=config) as generation:
        while generation.advance():
            pass
        found = generation.result().prompt_logprobs
    assert found.shape == (1, 8) and found[0, :4].isnan().all()  # the prompt is moved to the right
    check_same_bits(found[:, 4:], score(model, [prompt]))


# ---- refusals and errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"top_logprobs": 2}, {"prompt_logprobs": True}, {"entropy": True}], ids=str)
def test_a_call_that_returns_ids_alone_refuses_what_it_could_not_return(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} is .*return_dict_in_generate=True, or leave {name} out"):
        generate(tiny_model(), [1, 2], **option)
    with pytest.raises(ValueError, match=name):
        generate(tiny_model(), [1, 2], generation_config=GenerationConfig(**option))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("new", [0, 3])
def test_a_prompt_without_scores_ends_its_rows_and_the_others_go_on(new, use_cache):
    model = tiny_model(max_position_embeddings=512)
    with torch.no_grad():
        model.model.embed_tokens.weight[3] = math.nan
    good, bad = ids(200), [*ids(160)[:150], 3, *ids(9)]
    options = {"max_new_tokens": new, "num_return_sequences": 2, "use_cache": use_cache}
    told = TOLD | {"top_logprobs_mode": "raw"}
    for keywords in ({}, {"max_step_tokens": 50}):
        found, counters = run(model, [bad, good], keywords, **options, **told)
        assert found.finish_reasons == ["error", "error", "length", "length"]
        assert found.lengths == [0, 0, new, new]
        assert "model.embed_tokens.weight" in found.errors[0] and found.errors[2:] == [None, None]
        assert found.prompt_logprobs[:2].isnan().all()
        assert same(found.prompt_logprobs[2:, 1:], score(model, [good]).repeat_interleave(2, 0))
        assert counters["num_used_blocks"] == 0


def test_an_error_later_keeps_what_was_told():
    model = fixed_logits_model([0.0, 1.0, 2.0])
    options = {"do_sample": False, "no_repeat_ngram_size": 1, "max_new_tokens": 9, "seed": 0}
    result = generate(model, [0], return_dict_in_generate=True, **options, **TOLD)
    assert result.completions == [[2, 1]] and result.finish_reasons == ["error"]
    assert result.top_logprob_ids.shape == (1, 2, 4)
    assert result.processed_top_logprob_ids[0].tolist() == [[2, 1, -1, -1], [1, -1, -1, -1]]
    with pytest.raises(GenerationError):
        generate(model, [0], **options)
