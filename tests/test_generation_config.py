"""GenerationConfig: what is refused and how, dictionaries and copies, presets, and the table that describes it all."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from models import fixed_logits_model

from demiurgic import _C, GenerationConfig, generate

NAN, INF = float("nan"), float("inf")
FOURTEEN = [
    *("max_new_tokens", "max_length", "min_length", "temperature", "top_k", "top_p", "typical_p", "do_sample"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
    *("num_return_sequences", "pad_token_id", "eos_token_id"),
]
DEFAULTS = {
    "max_new_tokens": 100,
    "max_length": None,
    "min_length": 0,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.95,
    "typical_p": None,
    "do_sample": True,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "num_return_sequences": 1,
    "pad_token_id": None,
    "eos_token_id": None,
    "min_new_tokens": 0,
    "min_p": 0.0,
    "repetition_context_size": None,
    "penalize_prompt": True,
    "no_repeat_ngram_size": 0,
    "logit_bias": None,
    "bad_token_ids": None,
    "stop_token_ids": None,
    "seed": None,
    "use_cache": True,
    "speculate": None,
    "max_draft_tokens": 16,
    "stop": None,
    "include_stop": False,
    "stop_at": None,
    "stop_on_repetition": None,
    "repetition_min_tokens": 64,
    "trim_repetition": False,
    "top_logprobs": 0,
    "top_logprobs_mode": "raw",
    "prompt_logprobs": False,
    "entropy": False,
}
# One value of each option that is not its default.
CHANGED = {
    "max_new_tokens": 7,
    "max_length": 99,
    "min_length": 3,
    "temperature": 0.3,
    "top_k": 5,
    "top_p": 0.1,
    "typical_p": 0.25,
    "do_sample": False,
    "repetition_penalty": 1.3,
    "frequency_penalty": -0.7,
    "presence_penalty": 0.7,
    "num_return_sequences": 4,
    "pad_token_id": 0,
    "eos_token_id": [5, 6],
    "min_new_tokens": 2,
    "min_p": 0.05,
    "repetition_context_size": 20,
    "penalize_prompt": False,
    "no_repeat_ngram_size": 3,
    "logit_bias": {3: -1.5, 70000: 2.0},
    "bad_token_ids": [1, 2],
    "stop_token_ids": [9],
    "seed": [1, 2**64 - 1],
    "use_cache": False,
    "speculate": "ngram",
    "max_draft_tokens": 3,
    "stop": ["\n\n", "é"],
    "include_stop": True,
    "stop_at": "function",
    "stop_on_repetition": 3,
    "repetition_min_tokens": 1,
    "trim_repetition": True,
    "top_logprobs": 5,
    "top_logprobs_mode": "both",
    "prompt_logprobs": True,
    "entropy": True,
}


# ---- the table of options ----------------------------------------------------------------------------------


def test_defaults():
    config = GenerationConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS


def test_table_describes_every_option():
    options = _C.options()
    assert [option["name"] for option in options] == list(DEFAULTS)
    assert {option["name"]: option["default"] for option in options} == DEFAULTS
    for option in options:
        assert option["type"]
        assert option["range"]
        assert option["doc"].endswith(".")
        documentation = getattr(GenerationConfig, option["name"]).__doc__
        assert option["doc"] in documentation
        assert option["range"] in documentation
        assert option["type"] in documentation


def test_every_public_attribute_is_an_option_a_preset_or_a_method():
    public = {name for name in dir(GenerationConfig) if not name.startswith("_")}
    methods = {"to_dict", "from_dict", "to_json", "from_json", "replace", "validate"}
    assert public == set(DEFAULTS) | set(_C.presets()) | methods


# ---- what is refused, the same way at every door -----------------------------------------------------------

# option, value, error, a part of its message
REFUSED = [
    ("max_new_tokens", -1, ValueError, "max_new_tokens is -1, but must be an integer of 0 or more"),
    ("max_new_tokens", 2.0, TypeError, "max_new_tokens is 2.0 of type float, but must be int | None"),
    ("max_new_tokens", "5", TypeError, "max_new_tokens is '5' of type str"),
    ("max_new_tokens", True, TypeError, "max_new_tokens is True of type bool"),
    ("max_new_tokens", 2**63, ValueError, "max_new_tokens is 9223372036854775808, which does not fit"),
    ("max_new_tokens", torch.tensor([1, 2]), TypeError, "max_new_tokens is tensor([1, 2]) of type Tensor"),
    ("max_new_tokens", np.array([1, 2]), TypeError, "max_new_tokens is array([1, 2]) of type ndarray"),
    ("max_length", 0, ValueError, "max_length is 0, but must be an integer of 1 or more"),
    ("max_length", 1.5, TypeError, "max_length is 1.5"),
    ("min_length", -1, ValueError, "min_length is -1, but must be an integer of 0 or more"),
    ("min_length", [1], TypeError, "min_length is [1] of type list"),
    ("min_new_tokens", -5, ValueError, "min_new_tokens is -5, but must be an integer of 0 or more"),
    ("min_new_tokens", "a", TypeError, "min_new_tokens is 'a'"),
    ("temperature", -1, ValueError, "temperature is -1, but must be 0 (greedy) or from 0.0001 to 10000"),
    ("temperature", 0.00009999999, ValueError, "temperature is 9.999999e-05, but"),
    ("temperature", 10001, ValueError, "temperature is 10001, but"),
    ("temperature", NAN, ValueError, "temperature is nan, but"),
    ("temperature", INF, ValueError, "temperature is inf, but"),
    ("temperature", 10**400, ValueError, "temperature is inf, but"),
    ("temperature", True, TypeError, "temperature is True of type bool, but must be float | None"),
    ("temperature", "0.5", TypeError, "temperature is '0.5' of type str"),
    ("temperature", 1j, TypeError, "temperature is 1j of type complex"),
    ("temperature", torch.tensor([0.1, 0.2]), TypeError, "temperature is tensor([0.1000, 0.2000])"),
    ("top_k", -1, ValueError, "top_k is -1, but must be an integer of 0 or more (0 or None switches it off)"),
    ("top_k", 5.0, TypeError, "top_k is 5.0 of type float"),
    ("top_k", False, TypeError, "top_k is False of type bool"),
    ("top_p", 1.5, ValueError, "top_p is 1.5, but must be from 0 to 1"),
    ("top_p", 1.0000001, ValueError, "top_p is 1.0000001, but"),
    ("top_p", -0.1, ValueError, "top_p is -0.1, but"),
    ("top_p", NAN, ValueError, "top_p is nan, but"),
    ("top_p", "all", TypeError, "top_p is 'all'"),
    ("typical_p", 0, ValueError, "typical_p is 0, but must be above 0 and at most 1"),
    ("typical_p", -1, ValueError, "typical_p is -1, but"),
    ("typical_p", 1.01, ValueError, "typical_p is 1.01, but"),
    ("min_p", -0.01, ValueError, "min_p is -0.01, but must be from 0 to 1"),
    ("min_p", 2, ValueError, "min_p is 2, but"),
    ("do_sample", 1, TypeError, "do_sample is 1 of type int, but must be bool"),
    ("do_sample", None, TypeError, "do_sample is None, but must be True or False"),
    ("do_sample", "yes", TypeError, "do_sample is 'yes'"),
    ("repetition_penalty", 0, ValueError, "repetition_penalty is 0, but must be from 0.0001 to 10000"),
    ("repetition_penalty", -1.1, ValueError, "repetition_penalty is -1.1, but"),
    ("repetition_penalty", INF, ValueError, "repetition_penalty is inf, but"),
    ("frequency_penalty", 10001, ValueError, "frequency_penalty is 10001, but must be from -10000 to 10000"),
    ("frequency_penalty", NAN, ValueError, "frequency_penalty is nan, but"),
    ("presence_penalty", -10001, ValueError, "presence_penalty is -10001, but must be from -10000 to 10000"),
    ("presence_penalty", [], TypeError, "presence_penalty is []"),
    ("repetition_context_size", 0, ValueError, "repetition_context_size is 0, but must be an integer of 1 or more"),
    ("repetition_context_size", 1.0, TypeError, "repetition_context_size is 1.0"),
    ("penalize_prompt", 0, TypeError, "penalize_prompt is 0 of type int"),
    ("no_repeat_ngram_size", -2, ValueError, "no_repeat_ngram_size is -2, but must be an integer of 0 or more"),
    ("logit_bias", [1, 2], TypeError, "logit_bias is [1, 2] of type list, but must be dict[int, float] | None"),
    ("logit_bias", {"1": 2.0}, TypeError, "An entry of logit_bias is '1' of type str"),
    ("logit_bias", {1: "2"}, TypeError, "An entry of logit_bias is '2' of type str"),
    ("logit_bias", {-1: 2.0}, ValueError, "logit_bias is a mapping with the id -1"),
    ("logit_bias", {1: NAN}, ValueError, "logit_bias is nan for the id 1"),
    ("logit_bias", {1: -INF}, ValueError, "to forbid a token, name it in bad_token_ids"),
    ("logit_bias", {1: 1e31}, ValueError, "at most 1e30 in size"),
    ("bad_token_ids", "ab", TypeError, "bad_token_ids is 'ab' of type str, but must be list[int] | None"),
    ("bad_token_ids", {1, 2}, TypeError, "bad_token_ids is {1, 2} of type set"),
    ("bad_token_ids", [1, "a"], TypeError, "An entry of bad_token_ids is 'a' of type str, but must be an int"),
    ("bad_token_ids", [[1, 2]], TypeError, "An entry of bad_token_ids is [1, 2] of type list"),
    ("bad_token_ids", [3, -1], ValueError, "bad_token_ids is a list with -1"),
    ("stop_token_ids", [1.0], TypeError, "An entry of stop_token_ids is 1.0"),
    ("stop_token_ids", [2**63], ValueError, "An entry of stop_token_ids is 9223372036854775808, which does not fit"),
    ("stop_token_ids", -3, ValueError, "stop_token_ids is a list with -3"),
    ("eos_token_id", -1, ValueError, "eos_token_id is a list with -1"),
    ("eos_token_id", "</s>", TypeError, "eos_token_id is '</s>' of type str, but must be int | list[int] | None"),
    ("eos_token_id", [1, None], TypeError, "An entry of eos_token_id is None"),
    ("pad_token_id", -1, ValueError, "pad_token_id is -1, but must be an integer of 0 or more"),
    ("pad_token_id", [0], TypeError, "pad_token_id is [0]"),
    ("num_return_sequences", 0, ValueError, "num_return_sequences is 0, but must be an integer of 1 or more"),
    ("num_return_sequences", None, TypeError, "num_return_sequences is None, but must be an integer of 1 or more"),
    ("num_return_sequences", 1.0, TypeError, "num_return_sequences is 1.0"),
    ("seed", -1, ValueError, "seed is -1, but must be from 0 to 2**64 - 1"),
    ("seed", 2**64, ValueError, "seed is 18446744073709551616, but"),
    ("seed", [0, -1], ValueError, "seed is -1, but"),
    ("seed", 1.0, TypeError, "seed is 1.0 of type float, but must be an int, a list of ints or None"),
    ("seed", "42", TypeError, "seed is '42'"),
    ("seed", [True], TypeError, "seed is True"),
    ("use_cache", 1, TypeError, "use_cache is 1 of type int"),
    ("use_cache", None, TypeError, "use_cache is None, but must be True or False"),
    ("speculate", "draft", ValueError, "speculate is 'draft', but must be 'ngram' or None"),
    ("speculate", "", ValueError, "speculate is '', but"),
    ("speculate", True, TypeError, r"speculate is True of type bool, but must be str | None"),
    ("max_draft_tokens", 0, ValueError, "max_draft_tokens is 0, but must be an integer from 1 to 128"),
    ("max_draft_tokens", 129, ValueError, "max_draft_tokens is 129, but must be an integer from 1 to 128"),
    ("max_draft_tokens", None, TypeError, "max_draft_tokens is None, but must be an integer from 1 to 128"),
    ("max_draft_tokens", 2.0, TypeError, "max_draft_tokens is 2.0 of type float"),
    ("stop", "", ValueError, "stop is a list with an empty string in it, but must be strings of one character or more"),
    ("stop", ["a", ""], ValueError, "stop is a list with an empty string"),
    ("stop", b"a", TypeError, "stop is b'a' of type bytes, but must be str | list[str] | None"),
    ("stop", 5, TypeError, "stop is 5 of type int"),
    ("stop", ["a", 5], TypeError, "An entry of stop is 5 of type int, but must be a str"),
    ("stop", [["a"]], TypeError, "An entry of stop is ['a'] of type list"),
    ("stop", {"a"}, TypeError, "stop is {'a'} of type set"),
    ("stop", "\ud800", ValueError, "stop is '\\ud800', which has a lone surrogate and so is no text"),
    ("include_stop", 1, TypeError, "include_stop is 1 of type int"),
    ("include_stop", None, TypeError, "include_stop is None, but must be True or False"),
    ("stop_at", "method", ValueError, "stop_at is 'method', but must be 'function', 'code_block' or None"),
    ("stop_at", "", ValueError, "stop_at is '', but"),
    ("stop_at", True, TypeError, "stop_at is True of type bool, but must be str | None"),
    ("stop_at", ["function"], TypeError, "stop_at is ['function'] of type list"),
    ("stop_on_repetition", 1, ValueError, "stop_on_repetition is 1, but must be an integer of 2 or more"),
    ("stop_on_repetition", True, TypeError, "stop_on_repetition is True of type bool, but must be int | None"),
    ("stop_on_repetition", 2.0, TypeError, "stop_on_repetition is 2.0"),
    ("repetition_min_tokens", 0, ValueError, "repetition_min_tokens is 0, but must be an integer of 1 or more"),
    ("repetition_min_tokens", None, TypeError, "repetition_min_tokens is None, but must be an integer of 1 or more"),
    ("trim_repetition", "yes", TypeError, "trim_repetition is 'yes'"),
    ("trim_repetition", None, TypeError, "trim_repetition is None, but must be True or False"),
    ("top_logprobs", -1, ValueError, "top_logprobs is -1, but must be an integer from 0 to 1000 (0 or None switches"),
    ("top_logprobs", 1001, ValueError, "top_logprobs is 1001, but must be an integer from 0 to 1000"),
    ("top_logprobs", 2.0, TypeError, "top_logprobs is 2.0 of type float, but must be int | None"),
    ("top_logprobs", True, TypeError, "top_logprobs is True of type bool"),
    (
        "top_logprobs_mode",
        "cooked",
        ValueError,
        "top_logprobs_mode is 'cooked', but must be 'raw', 'processed' or 'both'",
    ),
    ("top_logprobs_mode", None, TypeError, "top_logprobs_mode is None, but must be 'raw', 'processed' or 'both'"),
    ("top_logprobs_mode", 1, TypeError, "top_logprobs_mode is 1 of type int, but must be str"),
    ("prompt_logprobs", 1, TypeError, "prompt_logprobs is 1 of type int, but must be bool"),
    ("prompt_logprobs", None, TypeError, "prompt_logprobs is None, but must be True or False"),
    ("entropy", "yes", TypeError, "entropy is 'yes' of type str, but must be bool"),
]
DOORS = {
    "constructor": lambda name, value: GenerationConfig(**{name: value}),
    "attribute": lambda name, value: setattr(GenerationConfig(), name, value),
    "from_dict": lambda name, value: GenerationConfig.from_dict({name: value}),
    "replace": lambda name, value: GenerationConfig().replace(**{name: value}),
    "preset": lambda name, value: GenerationConfig.balanced_code(8, **{name: value}),
    "generate": lambda name, value: generate(fixed_logits_model([0, 1]), [0], **{name: value}),
}


@pytest.mark.parametrize(("name", "value", "error", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused_values(name, value, error, message):
    for door, open_door in DOORS.items():
        if door == "preset" and name == "max_new_tokens":
            continue  # given positionally
        with pytest.raises(error) as caught:
            open_door(name, value)
        assert message in str(caught.value), door


def test_every_option_refuses_something():
    assert {name for name, *_ in REFUSED} == set(DEFAULTS)


# option, value at the edge of what is allowed, value as read back
ALLOWED = [
    ("max_new_tokens", 0, 0),
    ("max_new_tokens", 2**63 - 1, 2**63 - 1),
    ("max_new_tokens", np.int64(5), 5),
    ("max_new_tokens", torch.tensor(5), 5),
    ("max_length", 1, 1),
    ("min_length", None, 0),
    ("min_new_tokens", None, 0),
    ("temperature", 0, 0.0),
    ("temperature", 1, 1.0),
    ("temperature", 1e-4, 1e-4),
    ("temperature", 1e4, 1e4),
    ("temperature", None, 1.0),
    ("temperature", np.float32(0.5), 0.5),
    ("temperature", torch.tensor(0.5), 0.5),
    ("top_k", 0, 0),
    ("top_k", None, 0),
    ("top_p", 0, 0.0),
    ("top_p", 1, 1.0),
    ("top_p", None, 1.0),
    ("typical_p", 1e-300, 1e-300),
    ("typical_p", 1, None),
    ("typical_p", None, None),
    ("min_p", 1, 1.0),
    ("min_p", None, 0.0),
    ("repetition_penalty", 1e-4, 1e-4),
    ("repetition_penalty", None, 1.0),
    ("frequency_penalty", -1e4, -1e4),
    ("presence_penalty", None, 0.0),
    ("no_repeat_ngram_size", None, 0),
    ("speculate", None, None),
    ("max_draft_tokens", 1, 1),
    ("max_draft_tokens", 128, 128),
    ("logit_bias", {}, None),
    ("logit_bias", {5: 1}, {5: 1.0}),
    ("logit_bias", {5: -1e30}, {5: -1e30}),
    ("bad_token_ids", 3, [3]),
    ("bad_token_ids", (3, 4), [3, 4]),
    ("bad_token_ids", [], None),
    ("eos_token_id", 3, 3),
    ("eos_token_id", [3], 3),
    ("eos_token_id", [3, 4], [3, 4]),
    ("eos_token_id", [], []),
    ("top_logprobs", 1000, 1000),
    ("top_logprobs", None, 0),
    ("top_logprobs_mode", "processed", "processed"),
    ("seed", 2**64 - 1, 2**64 - 1),
    ("stop", "a", ["a"]),
    ("stop", ("a", "b"), ["a", "b"]),
    ("stop", [], None),
    ("stop", "\0€", ["\0€"]),
    ("stop_at", "code_block", "code_block"),
    ("stop_at", None, None),
    ("stop_on_repetition", 2, 2),
    ("stop_on_repetition", 2**63 - 1, 2**63 - 1),
    ("repetition_min_tokens", 2**63 - 1, 2**63 - 1),
    ("seed", (1, 2), [1, 2]),
    ("seed", np.uint64(2**64 - 1), 2**64 - 1),
]


@pytest.mark.parametrize(("name", "value", "read"), ALLOWED, ids=lambda value: str(value)[:40])
def test_allowed_values(name, value, read):
    config = GenerationConfig()
    setattr(config, name, value)
    assert config == GenerationConfig(**{name: value}) == GenerationConfig(**{name: read})
    assert (getattr(config, name), type(getattr(config, name))) == (read, type(read))


# given name, the nearest known one; None where none is near
UNKNOWN = [
    ("temperatur", "temperature"),
    ("max_tokens", "max_new_tokens"),
    ("topk", "top_k"),
    ("topp", "top_p"),
    ("repeat_penalty", "repetition_penalty"),
    ("eos_token_ids", "eos_token_id"),
    ("n_return_sequences", "num_return_sequences"),
    ("Seed", "seed"),
    ("quux", None),
    ("", None),
]


@pytest.mark.parametrize(("name", "nearest"), UNKNOWN)
def test_unknown_names(name, nearest):
    message = f"There is no generation option '{name}'"
    message += f"; did you mean '{nearest}'?" if nearest else "."
    for door, open_door in DOORS.items():
        with pytest.raises(AttributeError if door == "attribute" else TypeError) as caught:
            open_door(name, 1)
        assert str(caught.value) == message, door


# options that contradict each other, a part of the message
CONTRADICTIONS = [
    ({"max_new_tokens": None}, "max_new_tokens and max_length are both None; give at least one"),
    ({"min_length": 5, "max_length": 4}, "min_length is 5, but must be at most max_length, which is 4"),
    ({"min_new_tokens": 101}, "min_new_tokens is 101, but must be at most max_new_tokens, which is 100"),
    ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens is 4, but must be at most max_new_tokens, which is 3"),
]


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS)
def test_contradictions(options, message):
    by_attributes = GenerationConfig()
    for name, value in options.items():
        setattr(by_attributes, name, value)  # in any order, so they are compared later
    model = fixed_logits_model([0, 1])
    for attempt in (
        lambda: GenerationConfig(**options),
        lambda: GenerationConfig.from_dict(options),
        lambda: GenerationConfig().replace(**options),
        lambda: by_attributes.validate(),
        lambda: generate(model, [0], generation_config=by_attributes),
        lambda: generate(model, [0], **options),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_what_does_not_contradict():
    config = GenerationConfig(max_new_tokens=None, max_length=5, min_length=5, min_new_tokens=200)
    assert (config.max_length, config.min_length, config.min_new_tokens) == (5, 5, 200)
    config = GenerationConfig(max_new_tokens=4, min_new_tokens=4)
    assert (config.max_new_tokens, config.min_new_tokens) == (4, 4)


def test_a_refused_change_changes_nothing():
    config = GenerationConfig(top_k=7)
    with pytest.raises(ValueError, match="top_k"):
        config.top_k = -1
    with pytest.raises(ValueError, match="top_p"):
        config.replace(top_k=3, top_p=2)
    assert config == GenerationConfig(top_k=7)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: GenerationConfig(5), "incompatible"),
        (lambda: GenerationConfig.from_dict([("top_k", 5)]), "must be a dict of options"),
        (lambda: GenerationConfig.from_dict({1: 2}), "The name of an option is 1 of type int, but must be a str"),
        (lambda: GenerationConfig.from_json("[1]"), "must be an object of options"),
        (lambda: GenerationConfig.balanced_code(64, 3), "incompatible"),
        (lambda: GenerationConfig.balanced_code(64, max_new_tokens=3), "incompatible"),
        (lambda: GenerationConfig.balanced_code("a"), "max_new_tokens is 'a'"),
        (lambda: generate(fixed_logits_model([0, 1]), [0], generation_config={"top_k": 3}), "GenerationConfig"),
    ],
)
def test_wrong_calls(attempt, message):
    with pytest.raises(TypeError, match=message):
        attempt()


# ---- dictionaries, copies, texts ---------------------------------------------------------------------------


def test_to_dict_has_the_fourteen_keys_then_what_differs():
    assert list(GenerationConfig().to_dict().items()) == [(name, DEFAULTS[name]) for name in FOURTEEN]
    for name, value in CHANGED.items():
        changed = GenerationConfig(**{name: value}).to_dict()
        assert list(changed) == FOURTEEN + [name] * (name not in FOURTEEN)
        assert changed[name] == value
    assert set(GenerationConfig(**CHANGED).to_dict()) == set(DEFAULTS)


def test_changed_values_cover_every_option():
    assert list(CHANGED) == list(DEFAULTS)
    assert all(CHANGED[name] != DEFAULTS[name] for name in DEFAULTS)


ROUND_TRIPS = {
    "from_dict": lambda config: GenerationConfig.from_dict(config.to_dict()),
    "keywords": lambda config: GenerationConfig(**config.to_dict()),
    "to_json": lambda config: GenerationConfig.from_json(config.to_json()),
    "json": lambda config: GenerationConfig.from_json(json.dumps(config.to_dict())),
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "replace": lambda config: config.replace(),
    "repr": lambda config: eval(repr(config)),
}


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_round_trips(way):
    for options in [
        {},
        CHANGED,
        *({name: value} for name, value in CHANGED.items()),
        {"eos_token_id": []},
        {"seed": 0},
    ]:
        config = GenerationConfig(**options)
        again = ROUND_TRIPS[way](config)
        assert again == config
        assert again is not config
        assert again.to_dict() == config.to_dict()
        again.top_k = 33
        assert config.top_k != 33


def test_equality_is_by_value_and_so_there_is_no_hash():
    assert GenerationConfig() == GenerationConfig(**DEFAULTS)
    for name, value in CHANGED.items():
        assert GenerationConfig() != GenerationConfig(**{name: value})
    assert GenerationConfig() != DEFAULTS
    with pytest.raises(TypeError, match="unhashable"):
        hash(GenerationConfig())


def test_repr_names_what_differs():
    assert repr(GenerationConfig()) == "GenerationConfig()"
    assert repr(GenerationConfig(temperature=0.1, seed=3)) == "GenerationConfig(temperature=0.1, seed=3)"
    assert repr(GenerationConfig(eos_token_id=[], max_new_tokens=5)) == (
        "GenerationConfig(max_new_tokens=5, eos_token_id=[])"
    )


def test_replace_leaves_the_original():
    config = GenerationConfig(top_k=3)
    assert config.replace(temperature=0.1, top_k=4) == GenerationConfig(temperature=0.1, top_k=4)
    assert config == GenerationConfig(top_k=3)


def test_generate_leaves_the_config_and_its_keywords_win():
    config = GenerationConfig(do_sample=False, max_new_tokens=2)
    model = fixed_logits_model([0, 1])
    assert generate(model, [0], generation_config=config).tolist() == [[0, 1, 1]]
    assert generate(model, [0], generation_config=config, max_new_tokens=1).tolist() == [[0, 1]]
    assert generate(model, [0], generation_config=config, bad_token_ids=[1]).tolist() == [[0, 0, 0]]
    assert config == GenerationConfig(do_sample=False, max_new_tokens=2)


# ---- presets -----------------------------------------------------------------------------------------------

# temperature, top_k, top_p, repetition, frequency, presence, max_new_tokens
PRESETS = {
    "balanced_code": (0.8, 50, 0.95, 1.1, 0.2, 0.0, 512),
    "precise_code": (0.6, 40, 0.95, 1.05, 0.1, 0.0, 512),
    "creative_code": (1.0, 100, 0.9, 1.15, 0.3, 0.5, 512),
    "natural_text": (0.9, 50, 0.92, 1.2, 0.0, 0.6, 256),
    "completion_fim": (0.7, 40, 0.95, 1.1, 0.15, 0.0, 256),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    options = ("temperature", "top_k", "top_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
    expected = dict(zip((*options, "max_new_tokens"), PRESETS[name], strict=True))
    assert getattr(GenerationConfig, name)() == GenerationConfig(**expected)


def test_greedy_preset():
    greedy = GenerationConfig.greedy()
    assert greedy == GenerationConfig(do_sample=False)
    assert (greedy.repetition_penalty, greedy.frequency_penalty, greedy.presence_penalty) == (1.0, 0.0, 0.0)
    assert greedy.max_new_tokens == 100


@pytest.mark.parametrize("name", _C.presets())
def test_presets_take_overrides(name):
    preset = getattr(GenerationConfig, name)
    assert preset.__doc__.strip()
    assert preset(64) == preset(max_new_tokens=64) == preset().replace(max_new_tokens=64)
    assert preset(64, temperature=0.5, seed=3) == preset().replace(max_new_tokens=64, temperature=0.5, seed=3)
    assert preset(min_new_tokens=2).min_new_tokens == 2


def test_presets_are_all_tested_and_made_for_subclasses():
    class Mine(GenerationConfig):
        pass

    assert set(_C.presets()) == {"greedy", *PRESETS}
    for name in _C.presets():
        assert type(getattr(Mine, name)(5)) is Mine
