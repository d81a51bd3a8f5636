"""Small models for the tests of generation: one whose logits are chosen, one that is an ordinary tiny decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from demiurgic import DemiurgicConfig, DemiurgicForCausalLM

NO_SPECIAL_IDS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def tiny_model(**config: Any) -> DemiurgicForCausalLM:
    """A decoder of two layers with random weights (the same at every call), 97 tokens and no special ids."""
    settings = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # logits far apart, so that no two tokens nearly tie
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        return DemiurgicForCausalLM(DemiurgicConfig(**(settings | NO_SPECIAL_IDS | config))).eval()


def fixed_logits_model(logits: Sequence[float] | Tensor, **config: Any) -> DemiurgicForCausalLM:
    """A model that gives exactly the float32 `logits` [V] at every position, whatever the tokens.

    Every layer adds zero, every token has the same embedding, which the norm keeps, and the head makes `logits` of it.
    """
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return table_model(logits.expand(1, -1), **config)


def table_model(logits_after: Sequence[Sequence[float]] | Tensor, **config: Any) -> DemiurgicForCausalLM:
    """A model that gives exactly the float32 `logits_after[last token]`, a table of finite numbers [V, V].

    A table of one row stands for V equal ones, and may hold infinities and NaN.
    """
    table = torch.as_tensor(logits_after, dtype=torch.float32)
    num_states, vocab = table.shape
    hidden = 4
    while hidden < num_states:
        hidden *= 4  # a power of 4, so that the norm's square root is exact
    settings = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "rms_norm_eps": 0.0,
    }
    model = DemiurgicForCausalLM(DemiurgicConfig(**(settings | NO_SPECIAL_IDS | config))).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
                parameter.zero_()
        ids = torch.arange(vocab)
        # One-hot rows of mean square 1 pass the norm unchanged.
        parameters["model.embed_tokens.weight"][ids, ids if num_states > 1 else 0] = hidden**0.5
        parameters["lm_head.weight"][:, :num_states] = table.T / hidden**0.5
    return model
