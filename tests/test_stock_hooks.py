"""Processors and criteria of transformers, and lm-eval's: options of ours where the meaning is the same, else hooks."""

import subprocess
import sys
import textwrap
import types

import pytest
import torch
from models import NO_SPECIAL_IDS, fixed_logits_model, tiny_model
from plain_loop import prompts_without_ties

from demiurgic import _C, GenerationConfig, generate, load
from demiurgic.engine import merged
from demiurgic.hooks import Hooks
from demiurgic.loading import SHIPPED_MODELS
from demiurgic.stock_classes import Surroundings
from demiurgic.stock_hooks import take_over

transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402
from transformers.generation import stopping_criteria as criteria_of  # noqa: E402

PROMPTS = [[3, 4, 5], [20, 21, 22, 23, 24, 25, 26, 27], [5, 6, 5, 6, 7]]
EOS = [1, 2, 3, 4, 5, 6]
NEW = 14

temperature, top_k = theirs.TemperatureLogitsWarper, theirs.TopKLogitsWarper
top_p, min_p, typical = theirs.TopPLogitsWarper, theirs.MinPLogitsWarper, theirs.TypicalLogitsWarper
repetition, ngram = theirs.RepetitionPenaltyLogitsProcessor, theirs.NoRepeatNGramLogitsProcessor
suppress, bias = theirs.SuppressTokensLogitsProcessor, theirs.SequenceBiasLogitsProcessor
bad_words, min_length = theirs.NoBadWordsLogitsProcessor, theirs.MinLengthLogitsProcessor
min_new = theirs.MinNewTokensLengthLogitsProcessor


def mine(input_ids, scores):
    return scores


def run(model, prompts=PROMPTS, **options):
    return generate(model, prompts, **({"max_new_tokens": NEW, "return_dict_in_generate": True} | options))


def check_equal(one, other):
    assert one.completions == other.completions and one.finish_reasons == other.finish_reasons
    for name in ("sequences", "logprobs", "processed_logprobs"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


def taken(processors=(), criteria=(), prompts=((0,),), **options):
    config = merged(None, {"eos_token_id": EOS} | options)
    width = max(len(prompt) for prompt in prompts)
    return take_over(processors, criteria, Surroundings(config, set(options), width, prompts, 97))


def called(processors, **options):
    """Names of those that are called, in their order."""
    hooks = taken(processors, **options).hooks
    return [] if hooks is None else [hook.name for hook in hooks.processors]


# ---- processors that become options ---------------------------------------------------------------------------------

AS_OPTIONS = [
    ([temperature(0.5)], {"temperature": 0.5}),
    ([top_k(7)], {"top_k": 7}),
    ([top_k(2, min_tokens_to_keep=4)], {"top_k": 4}),
    ([top_k(200)], {"top_k": 200}),
    ([top_p(0.6)], {"top_p": 0.6}),
    ([top_p(0.0)], {"top_p": 0.0}),
    ([min_p(0.2)], {"min_p": 0.2}),
    ([typical(0.4)], {"typical_p": 0.4}),
    ([repetition(1.7)], {"repetition_penalty": 1.7}),
    ([repetition(1.7, prompt_ignore_length=torch.tensor([5, 0, 3]))], {"repetition_penalty": 1.7}),
    ([ngram(1)], {"no_repeat_ngram_size": 1}),
    ([ngram(2)], {"no_repeat_ngram_size": 2}),
    ([suppress([50, 13, 500])], {"bad_token_ids": [13, 50]}),
    ([bad_words([[50], [13], [1]], eos_token_id=1)], {"bad_token_ids": [13, 50]}),
    ([bias({(50,): 4.0, (13,): -3.5})], {"logit_bias": {50: 4.0, 13: -3.5}}),
    ([min_new(8, 6, EOS)], {"min_new_tokens": 6}),
    ([min_new(8, 500, EOS)], {"min_new_tokens": NEW}),
    ([min_length(13, EOS)], {"min_new_tokens": 5}),
    ([min_length(4, EOS)], {}),
    (
        [temperature(0.7), top_k(30), top_p(0.9), min_p(0.05)],
        {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
    ),
    ([temperature(0.7), typical(0.9), min_p(0.05)], {"temperature": 0.7, "typical_p": 0.9, "min_p": 0.05}),
    (
        [
            bias({(50,): 4.0}),
            repetition(1.3),
            ngram(2),
            bad_words([[9]]),
            suppress([8]),
            min_length(12, EOS),
            min_new(8, 3, EOS),
            temperature(0.9),
        ],
        {
            "logit_bias": {50: 4.0},
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "bad_token_ids": [8, 9],
            "min_new_tokens": 4,
            "temperature": 0.9,
        },
    ),
]


@pytest.mark.parametrize(("processors", "options"), AS_OPTIONS)
def test_a_stock_processor_is_its_option(processors, options):
    model = tiny_model()
    found = taken(processors, prompts=PROMPTS, max_new_tokens=NEW)
    assert found.hooks is None
    common = {"seed": 3, "eos_token_id": EOS}
    by_list = run(model, logits_processor=theirs.LogitsProcessorList(processors), **common)
    check_equal(by_list, run(model, **options, **common))
    if options not in ({}, {"top_k": 200}):
        assert by_list.completions != run(model, **common).completions


def test_min_length_counts_columns_as_theirs_does():
    model = fixed_logits_model([0.0, 5.0], eos_token_id=1)
    prompts = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]])
    result = run(model, prompts, attention_mask=mask, logits_processor=[min_length(6, 1)], do_sample=False)
    assert result.completions == [[0, 0, 1], [0, 0, 1]]


def test_forbidden_twice_is_no_conflict():
    model = fixed_logits_model([4.0, 3.0, 2.0, 1.0])
    result = run(model, [[3]], logits_processor=[suppress([1])], bad_token_ids=[0], do_sample=False)
    assert result.completions == [[2] * NEW]


# ---- those that are called ------------------------------------------------------------------------------------------


class MyTemperature(theirs.TemperatureLogitsWarper):
    def __call__(self, input_ids, scores):
        return scores / self.temperature + 1


@pytest.mark.parametrize(
    ("processors", "names"),
    [
        ([top_k(5), temperature(0.5)], ["TopKLogitsWarper"]),
        ([top_p(0.9), top_k(5)], ["TopPLogitsWarper"]),
        ([min_p(0.1), typical(0.9)], ["MinPLogitsWarper"]),
        ([top_p(0.9), typical(0.9)], ["TopPLogitsWarper"]),
        ([top_k(9), top_k(5)], ["TopKLogitsWarper"]),
        ([temperature(0.5), repetition(1.2)], ["TemperatureLogitsWarper", "RepetitionPenaltyLogitsProcessor"]),
        ([repetition(1.2), bias({(3,): 1.0})], ["SequenceBiasLogitsProcessor"]),
        ([repetition(1.2), repetition(1.1)], ["RepetitionPenaltyLogitsProcessor"]),
        ([ngram(2), ngram(3)], ["NoRepeatNGramLogitsProcessor"]),
        ([mine, repetition(1.2), temperature(0.5)], ["mine", "RepetitionPenaltyLogitsProcessor"]),
        ([repetition(1.2), mine, temperature(0.5)], ["mine"]),
        ([temperature(0.5), mine], ["TemperatureLogitsWarper", "mine"]),
        ([top_k(5, filter_value=-50.0)], ["TopKLogitsWarper"]),
        ([top_p(0.5, min_tokens_to_keep=2)], ["TopPLogitsWarper"]),
        ([temperature(1e-5)], ["TemperatureLogitsWarper"]),
        ([repetition(1.2, prompt_ignore_length=1)], ["RepetitionPenaltyLogitsProcessor"]),
        ([bad_words([[3, 4]])], ["NoBadWordsLogitsProcessor"]),
        ([bias({(3, 4): 1.0, (5,): 1.0})], ["SequenceBiasLogitsProcessor"]),
        ([bias({(5,): -float("inf")})], ["SequenceBiasLogitsProcessor"]),
        ([min_length(9, [1])], ["MinLengthLogitsProcessor"]),
        ([theirs.InfNanRemoveLogitsProcessor()], ["InfNanRemoveLogitsProcessor"]),
        ([MyTemperature(0.5)], ["MyTemperature"]),
    ],
)
def test_what_the_numbered_order_or_the_options_cannot_say_is_called(processors, names):
    assert called(processors) == names


@pytest.mark.parametrize("greedy", [{"do_sample": False}, {"temperature": 0}])
def test_typical_is_called_where_the_call_is_greedy(greedy):
    assert called([typical(0.9)], **greedy) == ["TypicalLogitsWarper"]
    assert called([top_k(5), typical(0.9), min_p(0.1)], **greedy) == ["TopKLogitsWarper", "TypicalLogitsWarper"]
    assert called([temperature(0.5), top_k(5), top_p(0.9), min_p(0.1)], do_sample=False) == []
    assert called([typical(0.9)]) == []


def test_min_length_leaves_stop_ids_alone():
    assert called([min_new(1, 3, EOS)], stop_token_ids=[9]) == ["MinNewTokensLengthLogitsProcessor"]


def test_what_is_called_is_no_option_as_well():
    options = taken([top_k(5), temperature(0.5), mine, typical(0.9)]).options
    assert options == {"top_k": 0, "temperature": 1.0, "typical_p": 0.9, "top_p": 1.0}
    assert taken([typical(0.9), mine]).options == {"typical_p": None, "top_p": 1.0}  # for which it stands in
    assert taken([typical(0.9), mine, top_p(0.8)]).options == {"typical_p": None, "top_p": 0.8}


LISTS = {
    "penalties": [repetition(1.4), ngram(2), suppress([7, 8])],
    "in another order": [suppress([7, 8]), repetition(1.4), mine, bias({(30,): 3.0}), ngram(2)],
    "sequences": [bad_words([[60, 61], [33]]), bias({(3, 4): -2.0, (50,): 1.5, (40, 41, 42): 5.0})],
    "ends": [min_length(14, EOS), theirs.ExponentialDecayLengthPenalty((3, 1.2), EOS, 8)],
    "forced": [theirs.ForcedEOSTokenLogitsProcessor(17, 2), theirs.SuppressTokensAtBeginLogitsProcessor([9, 20], 8)],
    "penalty without the prompt": [mine, repetition(1.4, prompt_ignore_length=8)],
    "normalised": [repetition(1.4), theirs.LogitNormalization(), ngram(3)],
    "filters that greedy does not see": [mine, repetition(1.2), top_k(40), temperature(0.3)],
    "typical, which may drop the most likely": [typical(0.02)],
    "typical among filters": [temperature(0.7), top_k(60), typical(0.05), min_p(0.01)],
}


def hugging_face(model):
    settings = {k: getattr(model.config, k) for k in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**settings, **heads, rms_norm_eps=model.config.rms_norm_eps, **NO_SPECIAL_IDS)
    )
    llama.load_state_dict(model.state_dict())
    llama.generation_config.eos_token_id = None
    return llama.eval()


@pytest.mark.parametrize("way", [{}, {"max_running": 2}, {"max_step_tokens": 5}])
@pytest.mark.parametrize("name", LISTS)
def test_greedy_tokens_are_those_of_hugging_face(name, way):
    model = tiny_model()
    prompts = [list(prompt) for prompt in prompts_without_ties(model, (8, 8, 8), NEW)]
    given = theirs.LogitsProcessorList(LISTS[name])
    expected = hugging_face(model).generate(
        torch.tensor(prompts),
        attention_mask=torch.ones(3, 8, dtype=torch.int64),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        logits_processor=given,
    )
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": [], "logits_processor": given}
    assert generate(model, torch.tensor(prompts), **options, **way).tolist() == expected.tolist()
    assert generate(model, prompts, max_new_tokens=NEW, do_sample=False).tolist() != expected.tolist()


@pytest.mark.parametrize("processor", [repetition(1.5), ngram(2), bad_words([[3, 4], [60, 61]]), bias({(3, 4): 2.0})])
@pytest.mark.parametrize("way", [{}, {"max_running": 2}, {"max_step_tokens": 5}])
def test_a_called_stock_processor_does_not_see_padding(processor, way):
    """As alone, where there is none; padding would be counted as tokens of the row."""
    model, options = tiny_model(pad_token_id=60), {"logits_processor": [mine, processor], "seed": [1, 2, 3]}
    together = run(model, **options, **way)
    for row, prompt in enumerate(PROMPTS):
        alone = run(model, [prompt], **options | {"seed": [row + 1]})
        assert together.completions[row] == alone.completions[0]


def test_a_constraint_is_told_the_row():
    allowed = {0: [10, 11], 1: [20, 21], 2: [30, 31]}
    processor = theirs.PrefixConstrainedLogitsProcessor(lambda row, tokens: allowed[row], num_beams=1)
    ends = {0: 2, 1: 5, 2: 9}

    def stop(input_ids, scores, rows):
        new = input_ids.shape[1] - max(map(len, PROMPTS))
        return torch.tensor([new >= ends[row] for row in rows.tolist()])

    result = run(tiny_model(), logits_processor=[processor], stopping_criteria=stop)
    assert [set(completion) <= set(allowed[row]) for row, completion in enumerate(result.completions)] == [True] * 3
    assert result.lengths == [2, 5, 9]


def test_a_penalty_with_an_ignored_length_for_each_row():
    model, ignored = tiny_model(), torch.tensor([3, 8, 5])
    processor = repetition(1.6, prompt_ignore_length=ignored + torch.tensor([5, 0, 3]))  # prompts and their padding

    def by_hand(input_ids, scores, rows):
        for i, row in enumerate(rows.tolist()):
            new = input_ids[i, 8:].unique()
            scores[i, new] = torch.where(scores[i, new] < 0, scores[i, new] * 1.6, scores[i, new] / 1.6)
            assert row in range(3)
        return scores

    options = {"seed": 7, "stopping_criteria": lambda input_ids, scores, rows: (input_ids.shape[1] > 15) & (rows == 1)}
    by_list = run(model, logits_processor=[processor], **options)
    assert by_list.completions == run(model, logits_processor=by_hand, **options).completions
    assert by_list.lengths[1] < by_list.lengths[0]


# ---- criteria -------------------------------------------------------------------------------------------------------


def test_eos_criteria_are_the_eos_ids():
    model = tiny_model(eos_token_id=7)
    criteria = criteria_of.StoppingCriteriaList(
        [criteria_of.EosTokenCriteria([3, 13]), criteria_of.EosTokenCriteria(23)]
    )
    result = run(model, stopping_criteria=criteria, seed=3, max_new_tokens=60)
    check_equal(result, run(model, eos_token_id=[3, 13, 23], seed=3, max_new_tokens=60))
    assert "eos" in result.finish_reasons


@pytest.mark.parametrize(("length", "new"), [(13, 5), (9, 1), (8, 1), (2, 1)])
def test_max_length_criteria_count_columns(length, new):
    criterion = criteria_of.MaxLengthCriteria(length)
    result = generate(tiny_model(), PROMPTS, stopping_criteria=[criterion], return_dict_in_generate=True)
    assert result.lengths == [new] * 3 and result.finish_reasons == ["length"] * 3


@pytest.mark.parametrize(
    ("seconds", "started", "new"), [(0.0, None, 1), (1e6, None, NEW), (1e6, 0.0, 1), (1e300, None, NEW)]
)
def test_max_time_ends_the_rows_of_its_call(seconds, started, new):
    criterion = criteria_of.MaxTimeCriteria(seconds, started)
    model = tiny_model()
    result = run(model, stopping_criteria=[criterion, criteria_of.MaxTimeCriteria(1e7)], seed=3)
    assert result.lengths == [new] * 3 and result.finish_reasons == ["length"] * 3
    assert result.completions == [row[:new] for row in run(model, seed=3).completions]


def test_max_time_ends_rows_that_have_not_begun():
    result = run(tiny_model(), stopping_criteria=criteria_of.MaxTimeCriteria(0.0), max_running=1)
    assert result.lengths == [1, 0, 0] and result.finish_reasons == ["length"] * 3


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processor", "options", "name"),
    [
        (temperature(0.5), {"temperature": 0.6}, "temperature=0.6"),
        (temperature(0.5), {"generation_config": GenerationConfig(temperature=0.6)}, "temperature=0.6"),
        (top_k(5), {"top_k": 6}, "top_k=6"),
        (top_p(0.5), {"top_p": 0.6}, "top_p=0.6"),
        (top_p(0.5), {"typical_p": 0.6}, "typical_p=0.6"),
        (typical(0.5), {"top_p": 0.6}, "top_p=0.6"),
        (min_p(0.5), {"min_p": 0.6}, "min_p=0.6"),
        (repetition(1.5), {"repetition_penalty": 1.6}, "repetition_penalty=1.6"),
        (repetition(1.5), {"generation_config": GenerationConfig.balanced_code(9)}, "repetition_penalty=1.1"),
        (ngram(3), {"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2"),
        (bias({(3,): 1.0}), {"logit_bias": {4: 1.0}}, "logit_bias={4: 1.0}"),
        (min_length(3, EOS), {"min_length": 2}, "min_length=2"),
        (min_new(1, 3, EOS), {"min_new_tokens": 2}, "min_new_tokens=2"),
    ],
)
@pytest.mark.parametrize("after", [[], [mine]])
def test_an_option_given_beside_its_processor_is_refused(processor, options, name, after):
    with pytest.raises(ValueError, match="is given beside it; give one of them") as caught:
        run(tiny_model(), logits_processor=[processor, *after], **options)
    assert f"{type(processor).__name__}, and {name} is given" in str(caught.value)


@pytest.mark.parametrize(
    ("criterion", "options", "name"),
    [
        (criteria_of.EosTokenCriteria(3), {"eos_token_id": 3}, "eos_token_id=3"),
        (criteria_of.MaxLengthCriteria(30), {"max_new_tokens": 9}, "max_new_tokens=9"),
        (criteria_of.MaxLengthCriteria(30), {"max_length": 9}, "max_length=9"),
    ],
)
def test_an_option_given_beside_its_criterion_is_refused(criterion, options, name):
    with pytest.raises(ValueError, match=f"holds a {type(criterion).__name__}, and {name} is given beside it"):
        generate(tiny_model(), [[1, 2]], stopping_criteria=criterion, **options)


@pytest.mark.parametrize("wrong", [97, 99999, -1])
def test_an_eos_criterion_outside_the_vocabulary_is_refused_by_its_name(wrong):
    with pytest.raises(
        IndexError, match=f"EosTokenCriteria with the id {wrong}, but the vocabulary has the ids 0 to 96"
    ):
        run(tiny_model(), stopping_criteria=[criteria_of.EosTokenCriteria([5, wrong])])


def test_auto_beside_a_limit_is_refused_by_its_name():
    options = {"max_new_tokens": "auto", "stopping_criteria": criteria_of.MaxLengthCriteria(30)}
    with pytest.raises(ValueError, match="MaxLengthCriteria, and max_new_tokens='auto' is given beside it"):
        generate(tiny_model(), [[1, 2]], tokenizer=_C.TokenBytes(["a"] * 97, [], "raw"), **options)


@pytest.mark.parametrize("option", [{"temperature": None}, {"temperature": 1}])
def test_an_option_that_is_switched_off_beside_its_processor_is_not(option):
    model = tiny_model()
    check_equal(run(model, seed=3, logits_processor=[temperature(0.5)], **option), run(model, seed=3, temperature=0.5))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (theirs.PrefixConstrainedLogitsProcessor(lambda row, tokens: [1], num_beams=2), "for beams; there are none"),
        (repetition(1.5, prompt_ignore_length=torch.tensor([1, 2])), "has 2 entries, but there are 3 rows"),
        (
            theirs.EncoderRepetitionPenaltyLogitsProcessor(1.5, torch.tensor(3 * [[1]])),
            "keeps something for each row of the batch by its place",
        ),
    ],
)
def test_stock_processors_that_cannot_be_called_rightly_are_refused(processor, message):
    with pytest.raises(ValueError, match=f"logits_processor holds a {type(processor).__name__}.*{message}"):
        run(tiny_model(), logits_processor=processor)


def test_a_processor_bound_to_its_batch_may_have_a_batch_of_one():
    processor = theirs.EncoderRepetitionPenaltyLogitsProcessor(0.5, torch.tensor([[3, 4, 5]]))
    result = run(tiny_model(), PROMPTS[:1], logits_processor=processor, seed=3)
    assert result.completions != run(tiny_model(), PROMPTS[:1], seed=3).completions


# ---- lm-eval --------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer: ids 0 to 25 are letters."""

    def encode(self, text, add_special_tokens=True):
        return [ord(letter) - ord("a") for letter in text]

    def batch_decode(self, rows):
        return ["".join(chr(ord("a") + i % 26) for i in row.tolist()) for row in rows]


@pytest.fixture
def multi_token_eos(monkeypatch):
    """A stand-in for lm-eval's MultiTokenEOSCriteria: the same fields, and one answer for the whole batch."""

    class MultiTokenEOSCriteria(criteria_of.StoppingCriteria):
        def __init__(self, sequence, tokenizer, initial_decoder_input_length, batch_size):
            self.initial_decoder_input_length, self.done_tracker = initial_decoder_input_length, [False] * batch_size
            self.sequence, self.tokenizer = sequence, tokenizer
            self.sequence_id_len = len(tokenizer.encode(sequence, add_special_tokens=False)) + 2

        def __call__(self, input_ids, scores, **keywords):
            new = input_ids[:, self.initial_decoder_input_length :][:, -self.sequence_id_len :]
            for row, text in enumerate(self.tokenizer.batch_decode(new)):
                self.done_tracker[row] = self.done_tracker[row] or self.sequence in text
            return False not in self.done_tracker

    module = types.ModuleType("lm_eval.models.utils")
    MultiTokenEOSCriteria.__module__, module.MultiTokenEOSCriteria = module.__name__, MultiTokenEOSCriteria
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return MultiTokenEOSCriteria


def test_lm_evals_criterion_ends_each_row_at_its_own_match(multi_token_eos):
    model, tokenizer = tiny_model(vocab_size=26), Letters()
    prompts = [[0, 1], [2, 3, 4, 5], [7]]
    options = {"max_new_tokens": 60, "seed": 4, "top_k": 3}
    plain = run(model, prompts, **options)
    texts = [tokenizer.batch_decode([torch.tensor(row)])[0] for row in plain.completions]
    wanted = [text[5:7] for text in texts]
    criteria = [multi_token_eos(sequence, tokenizer, 4, 3) for sequence in wanted]
    result = run(model, prompts, stopping_criteria=criteria, max_running=2, **options)
    ends = [min(text.find(sequence) for sequence in wanted if sequence in text) + 2 for text in texts]
    assert result.lengths == ends and result.finish_reasons == ["stop"] * 3
    assert [text[:end] for text, end in zip(texts, ends, strict=True)] == [
        tokenizer.batch_decode([torch.tensor(row)])[0] for row in result.completions
    ]
    assert [criterion.done_tracker for criterion in criteria] == [[False] * 3] * 3  # theirs is left alone


# ---- stop strings ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """The model that ships, and its tokenizer as one of transformers."""
    model, _ = load("tiny")
    file = SHIPPED_MODELS["tiny"] / "tokenizer.json"
    return model, transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))


def written(shipped, count=40):
    """Prompts, and the texts that the model writes after them."""
    model, tokenizer = shipped
    prompts = [tokenizer(text)["input_ids"] for text in ("def mean(values):", "class Stack:", "import os")]
    result = generate(model, prompts, max_new_tokens=count, seed=5, tokenizer=tokenizer, return_dict_in_generate=True)
    return prompts, result


def test_stop_strings_are_the_option_where_the_tokenizer_is_given(shipped):
    model, tokenizer = shipped
    prompts, plain = written(shipped)
    for begin in range(17, 40, 4):
        strings = [text[begin : begin + 3] for text in plain.texts]
        criterion = criteria_of.StopStringCriteria(tokenizer, strings)
        options = {"max_new_tokens": 40, "seed": 5, "stopping_criteria": [criterion], "return_dict_in_generate": True}
        called = generate(model, prompts, **options)
        as_option = generate(model, prompts, **options, tokenizer=tokenizer)
        assert called.completions == as_option.completions and called.finish_reasons == as_option.finish_reasons
        assert as_option.stop_reasons[0] in strings and called.stop_reasons[0] is None
        assert all(text.endswith(tuple(strings)) for text in as_option.texts)


@pytest.mark.parametrize(
    ("strings", "prompt", "options", "stops"),
    [
        (["\n\n", "y"], "a =", {}, ["\n\n", "y"]),
        (["xyz", "y", "ay"], "a =", {}, ["y"]),
        (["\n\n"], "a =\n", {}, None),  # may be complete with the first new token
        (["> y"], "a =", {}, None),  # special tokens end in >
        (["ix"], "a =", {}, None),  # the names of some have it
        (["y"], "a =", {"min_new_tokens": 2}, None),
        (["y"], "a =", {"include_stop": False}, None),
        (["y"], "a =", {"stop_at": "function"}, None),
        (["y"], "<bos>", {}, None),  # the blank that begins a text may be no part of it
    ],
)
def test_stop_strings_that_mean_something_else_are_called(shipped, strings, prompt, options, stops):
    _, tokenizer = shipped
    criterion = criteria_of.StopStringCriteria(tokenizer, strings)
    ids = tokenizer(prompt)["input_ids"]
    config = merged(None, {"eos_token_id": []} | options)
    found = take_over([], [criterion], Surroundings(config, set(options), len(ids), [ids], 4096, tokenizer))
    assert found.options.get("stop") == stops and (found.hooks is None) == (stops is not None)
    without = take_over([], [criterion], Surroundings(config, set(options), len(ids), [ids], 4096))
    assert without.hooks is not None and not without.options


def test_stop_beside_its_criterion_is_refused(shipped):
    model, tokenizer = shipped
    criterion = criteria_of.StopStringCriteria(tokenizer, ["q"])
    for name in ("stop", "stop_strings"):
        with pytest.raises(ValueError, match=r"StopStringCriteria, and stop=\['y'\] is given beside it"):
            generate(model, [[1]], stopping_criteria=criterion, tokenizer=tokenizer, **{name: "y"})


def test_lm_evals_criteria_are_the_option_where_their_tokenizer_says_its_bytes(shipped, multi_token_eos):
    model, tokenizer = shipped
    prompts, plain = written(shipped)
    strings = [text[4:6] for text in plain.texts]
    width = max(map(len, prompts))
    criteria = [multi_token_eos(string, tokenizer, width, 3) for string in strings]
    options = {"max_new_tokens": 40, "seed": 5, "return_dict_in_generate": True}
    result = generate(model, prompts, stopping_criteria=criteria, **options)
    called = generate(model, prompts, stopping_criteria=criteria, min_new_tokens=1, eos_token_id=[], **options)
    assert result.completions == called.completions and result.finish_reasons == called.finish_reasons
    assert None not in result.stop_reasons and called.stop_reasons == [None] * 3
    for text, completion in zip(plain.texts, result.completions, strict=True):
        end = min(text.find(string) + 2 for string in strings if string in text)
        assert tokenizer.decode(completion).startswith(text[:end]) and len(completion) < 40


def test_what_ends_a_row_that_waits_for_a_longer_match(shipped):
    model, tokenizer = shipped
    prompts, plain = written(shipped)
    tokens, text = plain.completions[0], plain.texts[0]
    first = text.index("mean")
    # The second string lies inside of what may become the first.
    stop = ["a mean\0", "mean"]
    end = next(n for n in range(1, 40) if "mean" in tokenizer.decode(tokens[:n]))
    options = {"max_new_tokens": 40, "seed": 5, "tokenizer": tokenizer, "stop": stop, "return_dict_in_generate": True}

    def at_once(input_ids, scores):
        return input_ids.shape[1] >= len(prompts[0]) + end

    plain = generate(model, prompts[:1], **options)
    assert len(plain.completions[0]) < end and text[first - 2 : first] == "a "
    result = generate(model, prompts[:1], stopping_criteria=at_once, **options)
    assert result.finish_reasons == ["stop"] and result.stop_reasons == ["mean"] and result.texts == [text[:first]]
    check_equal(result, plain)


# ---- without them ---------------------------------------------------------------------------------------------------


def test_transformers_is_never_imported():
    program = """
        import sys
        from models import tiny_model
        class TemperatureLogitsWarper:
            def __call__(self, input_ids, scores):
                return scores
        TemperatureLogitsWarper.__module__ = "transformers.generation.logits_process"  # says so, but is not
        hooks = {"logits_processor": TemperatureLogitsWarper(), "stopping_criteria": lambda ids, scores: True}
        tiny_model().generate([1, 2], 3, **hooks)
        assert "transformers" not in sys.modules and "lm_eval" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, cwd="tests")


def test_hooks_without_any_cost_nothing():
    assert taken().hooks is None and taken([temperature(0.5)], [criteria_of.EosTokenCriteria(3)]).hooks is None
    assert isinstance(taken([mine]).hooks, Hooks)
