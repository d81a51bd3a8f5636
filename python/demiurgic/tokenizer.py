"""Text to token ids and back, from a folder's tokenizer.json (the `tokenizers` library does the work)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import tokenizers

# Spellings of (prefix, middle, suffix) in use: StarCoder's, which ours follows, and Qwen's.
_FIM_NAMES = [
    tuple(style.format(part) for part in ("prefix", "middle", "suffix")) for style in ("<fim_{}>", "<|fim_{}|>")
]
_NAMES = {"pad": ("<pad>",), "bos": ("<bos>", "<s>"), "eos": ("<eos>", "</s>")}


class Tokenizer:
    """The tokenizer of a model's folder.

    Special ids come from the folder's config.json where there is one, else from the tokens' usual names. Text is
    always text: a prompt that contains "<eos>" or "<fim_prefix>" is encoded letter by letter, never as that token.

    Args:
        folder: holds tokenizer.json, and config.json beside it where it belongs to a model.

    Raises:
        FileNotFoundError: no tokenizer.json there.
        ValueError: a tokenizer.json or config.json that cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no tokenizer.json in {Path(folder)}: give the folder of a model that has one."
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
        self._tokenizer.encode_special_tokens = True  # user text never becomes a special token
        self._tokenizer.no_truncation()  # both may be left set in a file; neither is asked for here
        self._tokenizer.no_padding()
        config = _read_config(Path(folder) / "config.json")
        self.pad_token_id: int | None = self._special("pad", config)
        self.bos_token_id: int | None = self._special("bos", config)
        eos = config["eos_token_id"] if "eos_token_id" in config else self._special("eos", config)
        self.eos_token_ids: list[int] = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
        self.fim_tokens: dict[str, int] | None = self._find_fim(config.get("fim_tokens"))

    def _special(self, role: str, config: dict[str, Any]) -> int | None:
        if f"{role}_token_id" in config:
            token: int | None = config[f"{role}_token_id"]
            return token
        return next((i for name in _NAMES[role] if (i := self._tokenizer.token_to_id(name)) is not None), None)

    def _find_fim(self, named: dict[str, int] | None) -> dict[str, int] | None:
        """Ids of prefix, middle and suffix. Ids of a config count only if the tokenizer has special tokens there:
        every config of ours has the default ones, the text of another model's tokenizer may use them otherwise."""
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        if named and named.keys() >= {"prefix", "middle", "suffix"} and special.issuperset(named.values()):
            return {part: named[part] for part in ("prefix", "middle", "suffix")}
        for names in _FIM_NAMES:
            ids = [i for name in names if (i := self._tokenizer.token_to_id(name)) is not None]
            if len(ids) == len(names):
                return dict(zip(("prefix", "middle", "suffix"), ids, strict=True))
        return None

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_id(self) -> int | None:
        """The first end-of-sequence id, None if there is none."""
        return self.eos_token_ids[0] if self.eos_token_ids else None

    @overload
    def encode(self, text: str, add_bos: bool = False) -> list[int]: ...
    @overload
    def encode(self, text: list[str], add_bos: bool = False) -> list[list[int]]: ...
    def encode(self, text: str | list[str], add_bos: bool = False) -> list[int] | list[list[int]]:
        """Ids of a text, or of each text of a list. `add_bos` puts the beginning-of-sequence id in front.

        Raises:
            TypeError: not a str or a list of str.
            ValueError: `add_bos` where the tokenizer has no such id; a lone surrogate, which is no text.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple):
            raise TypeError(f"encode takes a str or a list of str, not {type(texts).__name__}.")
        for item in texts:
            if not isinstance(item, str):
                raise TypeError(f"encode takes a str or a list of str, not a list with {type(item).__name__} in it.")
            _check_text(item)
        start = self._bos() if add_bos else []
        rows = [start + e.ids for e in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        return rows[0] if isinstance(text, str) else rows

    @overload
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    @overload
    def decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]: ...
    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str | list[str]:
        """Text of a row of ids, or of each row of a batch; lists or integer tensors.

        Bytes that are no UTF-8 (a character cut in half) become U+FFFD.

        Raises:
            TypeError: ids that are not integers.
            IndexError: an id outside the vocabulary.
        """
        rows = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        batch = bool(rows) and all(hasattr(row, "__iter__") and not isinstance(row, str) for row in rows)
        decoded = [self._decode_row(list(row), skip_special_tokens) for row in (rows if batch else [rows])]
        return decoded if batch else decoded[0]

    def _decode_row(self, row: list[Any], skip_special_tokens: bool) -> str:
        row = row if all(type(i) is int for i in row) else [_as_int(i) for i in row]
        wrong = next((i for i in row if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise IndexError(f"Token ids must be at least 0 and below {self.vocab_size}; {wrong} was given.")
        return self._tokenizer.decode(row, skip_special_tokens=skip_special_tokens)

    @overload
    def fim(self, prefix: str, suffix: str) -> list[int]: ...
    @overload
    def fim(self, prefix: list[str], suffix: list[str]) -> list[list[int]]: ...
    def fim(self, prefix: str | list[str], suffix: str | list[str]) -> list[int] | list[list[int]]:
        """Ids that ask for the text between `prefix` and `suffix`: bos, prefix mark and text, suffix mark and text,
        middle mark; of lists of equal length, one row for each pair.

        The order prefix, suffix, middle ("PSM") of Bavarian et al., "Efficient Training of Language Models to Fill in
        the Middle" (arXiv:2207.14255). What the model generates next is the middle.

        Raises:
            TypeError: not two of str or two lists of str.
            ValueError: the tokenizer has no fill-in-the-middle tokens; lists of unequal length.
        """
        if self.fim_tokens is None:
            raise ValueError(
                "This tokenizer has no fill-in-the-middle tokens (<fim_prefix>, <fim_middle>, <fim_suffix>), so a "
                "suffix cannot be given: use a model trained for it, such as the shipped one, or only a prompt."
            )
        if not isinstance(prefix, list) and not isinstance(suffix, list):
            return self.fim([prefix], [suffix])[0]
        if not isinstance(prefix, list) or not isinstance(suffix, list):
            raise TypeError("fim takes two of str or two lists of str, not one of each.")
        before, after = self.encode(prefix), self.encode(suffix)
        if len(before) != len(after):
            raise ValueError(f"fim was given {len(before)} prefixes and {len(after)} suffixes; give as many of both.")
        mark, start = self.fim_tokens, [] if self.bos_token_id is None else [self.bos_token_id]
        return [
            [*start, mark["prefix"], *head, mark["suffix"], *tail, mark["middle"]]
            for head, tail in zip(before, after, strict=True)
        ]

    def _bos(self) -> list[int]:
        if self.bos_token_id is None:
            raise ValueError("This tokenizer has no beginning-of-sequence id: encode without add_bos.")
        return [self.bos_token_id]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(config).__name__}.")
    return config


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text has a lone surrogate at position {error.start}, which no UTF-8 text can hold."
        ) from None


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"decode takes integer token ids, not {value!r}.")
    return int(value)
