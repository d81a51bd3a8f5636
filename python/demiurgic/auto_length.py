"""`max_new_tokens="auto"`: each prompt's own length, by what it asks for and by the context that is left."""

from __future__ import annotations

from typing import Any

from demiurgic import _C
from demiurgic.text import suggest_max_new_tokens

_MOST = 1024  # that suggest_max_new_tokens gives


def take_auto_length(options: dict[str, Any], config: _C.GenerationConfig | None = None) -> bool:
    """Whether max_new_tokens is "auto" among `options`; if so it becomes a number that allows what auto may give.

    Args:
        options: those given by name, which win over `config`.

    Raises:
        ValueError: max_length is given as well, beside which auto would mean nothing.
    """
    if not isinstance(options.get("max_new_tokens"), str) or options["max_new_tokens"] != "auto":
        return False
    max_length, least = (options.get(name, getattr(config, name, None)) for name in ("max_length", "min_new_tokens"))
    if max_length is not None:
        raise ValueError(
            f"max_new_tokens='auto' is given beside max_length={max_length!r}, which wins over it; give one of them."
        )
    # What is no number, or none that fits, is refused by its own name.
    options["max_new_tokens"] = max(_MOST, least) if isinstance(least, int) and least < 2**63 else _MOST
    return True


def auto_lengths(
    prompts: list[list[int]], token_bytes: _C.TokenBytes | None, config: _C.GenerationConfig, model_config: Any
) -> list[int]:
    """New tokens for each prompt: what suggest_max_new_tokens says of its text, at most the rest of the model's
    context, and min_new_tokens at least.

    Raises:
        ValueError: no tokenizer; a prompt that leaves less than one token, or than min_new_tokens, of the context.
    """
    if token_bytes is None:
        raise ValueError(
            "max_new_tokens='auto' reads the prompt's text, so it needs the tokenizer: give tokenizer= too or a number."
        )
    context: int = model_config.max_position_embeddings
    return [_length(row, ids, token_bytes, config.min_new_tokens or 0, context) for row, ids in enumerate(prompts)]


def _length(row: int, ids: list[int], token_bytes: _C.TokenBytes, least: int, context: int) -> int:
    room = context - len(ids)
    if room < max(least, 1):
        raise ValueError(
            f"max_new_tokens='auto' finds room for {max(room, 0)} tokens after the {len(ids)} of prompt {row}: "
            f"max_position_embeddings is {context}. Give a number to go past it, or a shorter prompt."
        )
    text = b"".join(map(token_bytes.of, ids)).decode("utf-8", errors="replace")
    return max(min(suggest_max_new_tokens(text), room), least)
