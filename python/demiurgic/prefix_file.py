"""A computed prefix on disk: its tokens, keys and values, and what they are of, in one safetensors file."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# To be raised when the file changes, or the bits of keys and values that the kernels give.
FORMAT = "demiurgic prefix 1"


class Prefix(NamedTuple):
    """Keys are rotated for positions 0 to T - 1, and both are in the dtype of the weights."""

    tokens: Tensor  # int64 [T]
    keys: Tensor  # [layers, kv_heads, T, head_dim]
    values: Tensor  # as keys


class Origin(NamedTuple):
    """What the bits of a prefix depend on beside its tokens."""

    format: str
    build: str  # version of demiurgic, and of the torch that it was built for
    shape: str  # layers, kv_heads, head_dim, dtype
    kernels: str
    weights: str  # the fingerprint of their values, 16 hexadecimal digits


_DIFFERENCES = {
    "format": "it is of the form '{theirs}', and this version reads '{ours}'",
    "build": "it was computed by {theirs}, and this is {ours}, which may compute other bits",
    "shape": "its model has {theirs}, and this one {ours}",
    "kernels": "it was computed on '{theirs}' and here the kernels are '{ours}', which add in another order",
    "weights": "it was computed with other weights (fingerprint {theirs}, and the model's is {ours})",
}


def write_prefix(path: str | os.PathLike[str], prefix: Prefix, origin: Origin) -> None:
    """Writes under a temporary name first, so that a file that is there stays whole until the new one is.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} does not exist; make it before a prefix is saved there.")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in prefix._asdict().items()}
    metadata = {**origin._asdict(), "checksum": _checksum(tensors)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the process's umask has it; safetensors writes 0600
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_prefix(path: str | os.PathLike[str], origin: Origin) -> Prefix:
    """The prefix in a file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no prefix, or one that is of something else than `origin`; the message says what.
        RuntimeError: it is not whole, or its numbers have changed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give the path that save_prefix was given.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _refuse_other(path, metadata, origin)
            tensors = {name: file.get_tensor(name) for name in Prefix._fields if name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RuntimeError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file; save the prefix again ({error})."
        ) from error
    if len(tensors) < len(Prefix._fields) or _checksum(tensors) != metadata.get("checksum"):
        raise RuntimeError(f"{path} is damaged: its numbers are not those that were saved. Save the prefix again.")
    return Prefix(**tensors)


def _refuse_other(path: Path, metadata: dict[str, str], origin: Origin) -> None:
    if not metadata.get("format", "").startswith("demiurgic prefix"):
        raise ValueError(f"{path} holds no prefix; give a file that save_prefix wrote.")
    for name, ours in origin._asdict().items():
        theirs = metadata.get(name, "")
        if theirs != ours:
            difference = _DIFFERENCES[name].format(theirs=theirs, ours=ours)
            raise ValueError(f"The prefix in {path} is refused: {difference}. Compute it anew and save it.")


def _checksum(tensors: dict[str, Tensor]) -> str:
    """CRC-32 over all bytes: what a bad disk or copy changes is found."""
    crc = 0
    for name in Prefix._fields:
        if tensors[name].numel() > 0:
            crc = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
