"""Tokenizers in which a character may be several tokens, for the tests of streams of text."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from demiurgic.tokenizer import Tokenizer

CORPUS = ["def f(x):\n    return x + 1  # größer, 你好世界, नमस्ते 👩‍👩‍👧 🏳️‍🌈"] * 4
SPECIAL = ["<pad>", "<bos>", "<eos>"]


def byte_level() -> Backend:
    """Byte-level BPE whose merges join some bytes of characters, not all."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback() -> Backend:
    """As Llama 2's: words begin with a mark, unknown characters are tokens of one byte, the first space is dropped."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghij"]
    backend = Backend(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return backend


def saved(backend: Backend, folder: Path) -> Tokenizer:
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One id a byte: GPT-2's printable stand-ins for bytes, in the order of the bytes, are the alphabet's tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    vocabulary = tokenizer._tokenizer.get_vocab()
    return [vocabulary[names[byte]] for byte in data]
