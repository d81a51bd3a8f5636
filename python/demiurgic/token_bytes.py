"""The bytes that each token of a tokenizer stands for, from the kinds of tokenizers that say so."""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Iterable
from typing import Any

import tokenizers

from demiurgic import _C

# By tokenizer: number of its tokens, which grows where tokens are added, and their bytes.
_made: weakref.WeakKeyDictionary[Any, tuple[int, _C.TokenBytes]] = weakref.WeakKeyDictionary()

_KNOWN = (
    "give a demiurgic or transformers tokenizer, a tokenizers.Tokenizer or a tiktoken.Encoding whose text is made of "
    "its tokens' bytes: byte-level BPE, SentencePiece or tiktoken"
)


def token_bytes(tokenizer: Any) -> _C.TokenBytes:
    """The table of bytes of a tokenizer's tokens; a table stands for itself.

    It is made once for each tokenizer object and size of its vocabulary, and goes with the tokenizer.

    Known are byte-level BPE (GPT-2), SentencePiece's pieces with or without byte fallback, in a
    `tokenizers.Tokenizer`, in this package's Tokenizer or in a fast tokenizer of transformers, and `tiktoken.Encoding`.
    Special tokens stand for no bytes, as where decoding skips special tokens; added tokens that are not special stand
    for themselves.

    Raises:
        TypeError: something that is no tokenizer of these.
        ValueError: a tokenizer whose decoder does more than to join the tokens' bytes, as WordPiece.
    """
    if isinstance(tokenizer, _C.TokenBytes):
        return tokenizer
    backend, special = _backend(tokenizer)
    size = backend.n_vocab if backend is tokenizer and _is_tiktoken(backend) else backend.get_vocab_size()
    try:
        known = _made.get(tokenizer)
    except TypeError:  # neither hashable nor weakly referable
        known = None
    if known is not None and known[0] == size + len(special):
        return known[1]
    table = _of_tiktoken(backend) if _is_tiktoken(backend) else _of_backend(backend, special)
    with contextlib.suppress(TypeError):
        _made[tokenizer] = (size + len(special), table)
    return table


def _is_tiktoken(tokenizer: Any) -> bool:
    return hasattr(tokenizer, "decode_single_token_bytes") and hasattr(tokenizer, "n_vocab")


def _backend(tokenizer: Any) -> tuple[Any, set[int]]:
    """What holds the vocabulary, and the special ids that it does not know of itself."""
    if isinstance(tokenizer, tokenizers.Tokenizer) or _is_tiktoken(tokenizer):
        return tokenizer, set()
    inner = getattr(tokenizer, "_tokenizer", None)
    if isinstance(inner, tokenizers.Tokenizer):  # ours, and the fast ones of transformers
        return inner, set(getattr(tokenizer, "all_special_ids", ()))
    raise TypeError(f"tokenizer is of type {type(tokenizer).__name__}; {_KNOWN}.")


def _of_tiktoken(encoding: Any) -> _C.TokenBytes:
    tokens: list[Any] = [b""] * encoding.n_vocab  # bytes, which the core takes as well as texts
    for token in range(encoding.n_vocab):
        try:
            tokens[token] = encoding.decode_single_token_bytes(token)
        except KeyError:  # the ids have gaps
            continue
    special = [encoding.encode_single_token(name) for name in encoding.special_tokens_set]
    return _C.TokenBytes(tokens, special, "raw")


def _of_backend(backend: tokenizers.Tokenizer, special: Iterable[int]) -> _C.TokenBytes:
    spelling, leading_blank = _spelling(backend)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        tokens[i] = token
    added = backend.get_added_tokens_decoder()
    return _C.TokenBytes(tokens, [*special, *(i for i, t in added.items() if t.special)], spelling, leading_blank)


def _spelling(backend: tokenizers.Tokenizer) -> tuple[str, str]:
    """How tokens spell bytes, and what becomes of a blank that begins a text."""
    decoder = {} if backend.decoder is None else json.loads(backend.decoder.__getstate__())
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return "byte_level", "kept"
    blanks = [step for step in steps if step.get("type") == "Metaspace" or _is_blank_mark(step)]
    strips = [step for step in steps if step.get("type") == "Strip"]
    known = kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
    usual = len(blanks) == 1 and all(_is_blank_mark(s) for s in steps if s.get("type") == "Replace")
    if known and usual and all((s["content"], s["start"], s["stop"]) == (" ", 1, 0) for s in strips):
        drops_token = blanks[0]["type"] == "Metaspace" and blanks[0].get("prepend_scheme", "always") != "never"
        spelling = "byte_fallback" if "ByteFallback" in kinds else "pieces"
        return spelling, "token_dropped" if drops_token else "one_dropped" if strips else "kept"
    named = "decodes with " + ", ".join(sorted(map(str, kinds))) if decoder else "has no decoder"
    raise ValueError(f"tokenizer {named}, so its tokens alone do not make the text; {_KNOWN}.")


def _is_blank_mark(step: dict[str, Any]) -> bool:
    return step.get("type") == "Replace" and step.get("pattern") == {"String": "▁"} and step.get("content") == " "
