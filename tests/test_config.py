"""DemiurgicConfig: fields, defaults, sizes, validation. One line a case."""

import copy
import dataclasses
import json
import pickle

import pytest

import demiurgic
from demiurgic import DemiurgicConfig

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "use_flash_attention_2": True,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "activation_function": "swiglu",
    "hidden_dropout": 0.0,
    "embedding_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
    "tie_word_embeddings": False,
    "fim_tokens": {"prefix": 3, "middle": 4, "suffix": 5},
}

SIZES = {  # hidden, intermediate, layers, heads, kv heads, positions, use_flash_attention_2
    "10m": (256, 688, 6, 8, 8, 2048, False),
    "100m": (768, 2048, 12, 12, 12, 2048, False),
    "350m": (1024, 2752, 24, 16, 16, 2048, False),
    "1b": (2048, 5504, 24, 16, 16, 4096, True),
    "7b": (4096, 11008, 32, 32, 32, 8192, True),
    "13b": (5120, 13824, 40, 40, 40, 8192, True),
    "70b": (8192, 22016, 80, 64, 8, 8192, True),
}

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_defaults_and_their_order():
    assert list(DemiurgicConfig().to_dict().items()) == list(DEFAULTS.items())


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    config = getattr(demiurgic, f"get_{name}_config")()
    assert config.vocab_size == 32000
    assert SIZES[name] == (
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.max_position_embeddings,
        config.use_flash_attention_2,
    )


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, ValueError, "must be divisible"),
        ({"num_key_value_heads": 5}, ValueError, "must be divisible"),
        ({"hidden_size": 12, "num_attention_heads": 4}, ValueError, "must be divisible by 2"),
        ({"attention_head_dim": 33}, ValueError, "must be divisible by 2"),
        ({"activation_function": "tanh"}, ValueError, "Unsupported activation: 'tanh'"),
        ({"no_such_field": 1}, TypeError, "no_such_field"),
        ({"hidden_size": "64"}, TypeError, "hidden_size must be an integer"),
        ({"num_hidden_layers": True}, TypeError, "num_hidden_layers must be an integer"),
        ({"num_hidden_layers": 0}, ValueError, "num_hidden_layers must be at least 1"),
        ({"vocab_size": -1}, ValueError, "vocab_size must be at least 1"),
        ({"num_key_value_heads": 0}, ValueError, "num_key_value_heads must be at least 1"),
        ({"max_position_embeddings": 0}, ValueError, "max_position_embeddings must be at least 1"),
        ({"rms_norm_eps": -1e-6}, ValueError, "rms_norm_eps must be at least 0"),
        ({"rms_norm_eps": float("nan")}, ValueError, "rms_norm_eps"),
        ({"rope_theta": 1.0}, ValueError, "rope_theta must be greater than 1"),
        ({"rope_theta": float("inf")}, ValueError, "finite"),
        ({"attention_dropout": 1.0}, ValueError, "attention_dropout must be at least 0 and below 1"),
        ({"hidden_dropout": "0.1"}, TypeError, "hidden_dropout must be a number"),
        ({"use_cache": 1}, TypeError, "use_cache must be True or False"),
        ({"mlp_bias": None}, TypeError, "mlp_bias must be True or False"),
        ({"pad_token_id": 32000}, ValueError, "must be below vocab_size"),
        ({"bos_token_id": -1}, ValueError, "bos_token_id must be at least 0"),
        ({"eos_token_id": [2, "3"]}, TypeError, "eos_token_id must be an integer"),
        ({"fim_tokens": [3, 4, 5]}, TypeError, "fim_tokens must be a dict"),
        ({"fim_tokens": {"prefix": -3}}, ValueError, "fim_tokens['prefix']"),
        ({"model_type": "gpt2"}, ValueError, "model_type is 'gpt2'"),
        ({"rope_scaling": "linear"}, TypeError, "rope_scaling must be None or a dict"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ValueError,
            "rotation would change as the text grows",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, ValueError, "rotation would change"),
        ({"rope_scaling": {"rope_type": "magic"}}, ValueError, "Unknown rope_scaling type 'magic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, ValueError, "needs factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, ValueError, "greater than 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, TypeError, "must be a number"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
            ValueError,
            "unknown keys: beta",
        ),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, ValueError, "two types"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, ValueError, "must be greater than"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, TypeError, "truncate"),
    ],
)
def test_what_is_no_model_is_refused(changes, error, words):
    with pytest.raises(error) as raised:
        DemiurgicConfig(**changes)
    assert words in str(raised.value)


def test_key_value_heads_follow_the_query_heads_unless_given():
    free, given = DemiurgicConfig(), DemiurgicConfig(num_key_value_heads=8)
    free.num_attention_heads = given.num_attention_heads = 16
    assert (free.num_key_value_heads, given.num_key_value_heads) == (16, 8)
    assert free.to_dict()["num_key_value_heads"] == 16
    free.num_key_value_heads, given.num_key_value_heads = 4, None
    free.num_attention_heads = given.num_attention_heads = 64
    assert (free.num_key_value_heads, given.num_key_value_heads) == (4, 64)
    for copied in (copy.deepcopy(given), pickle.loads(pickle.dumps(given))):
        copied.num_attention_heads = 8
        assert copied.num_key_value_heads == 8


def test_head_dim_follows_or_is_given():
    config = DemiurgicConfig()
    assert config.head_dim == 128
    config.hidden_size = 2048
    assert config.head_dim == 64
    assert DemiurgicConfig(attention_head_dim=96).head_dim == 96
    assert DemiurgicConfig(hidden_size=100, num_attention_heads=3, attention_head_dim=32).head_dim == 32


@pytest.mark.parametrize("changes", [{}, {"attention_head_dim": 64, "mlp_bias": True}, {"rope_scaling": LLAMA3}])
def test_round_trips(changes):
    config = DemiurgicConfig(eos_token_id=[2, 7], pad_token_id=None, **changes)
    settings = json.loads(json.dumps(config.to_dict()))
    assert DemiurgicConfig.from_dict(settings) == DemiurgicConfig(**settings) == config
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == dataclasses.replace(config) == config
    assert set(config.to_dict()) - set(DEFAULTS) == set(changes) - {"rope_scaling"}


def test_configs_share_nothing():
    first, second = DemiurgicConfig(), DemiurgicConfig()
    first.fim_tokens["prefix"] = 9
    first.to_dict()["fim_tokens"]["suffix"] = 9
    assert (first.fim_tokens["suffix"], second.fim_tokens["prefix"]) == (5, 3)


def test_files_may_carry_harmless_keys_only():
    extra = {
        "model_type": "demiurgic",
        "architectures": ["DemiurgicForCausalLM"],
        "transformers_version": "4.40",
    }
    assert DemiurgicConfig.from_dict(DemiurgicConfig().to_dict() | extra) == DemiurgicConfig()
    assert DemiurgicConfig(**DemiurgicConfig().to_dict(), model_type="demiurgic") == DemiurgicConfig()
    with pytest.raises(TypeError, match=r"'hiden_size' \(near: 'hidden_size'\), 'qk_norm'.*mathematics"):
        DemiurgicConfig.from_dict({"hiden_size": 64, "qk_norm": True})
