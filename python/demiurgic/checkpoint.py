"""Checkpoint folders: config.json and the weights, written and read.

Read are folders of ours, of the origin (pytorch_model.bin, its own names), and of Hugging Face Llama models.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from demiurgic.config import DemiurgicConfig, rope_type_of
from demiurgic.model import DemiurgicForCausalLM, DemiurgicPreTrainedModel, current_name

logger = logging.getLogger("demiurgic")

Model = TypeVar("Model", bound=DemiurgicPreTrainedModel)
Shape = tuple[int, ...]

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# What Hugging Face takes for a key that its config.json leaves out, where that differs from our default.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "pad_token_id": None},
    "mistral": {
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "pad_token_id": None,
        "sliding_window": 4096,
    },
}
_ARCHITECTURES = (
    "DemiurgicForCausalLM",
    "DemiurgicModel",
    "LlamaForCausalLM",
    "LlamaModel",
    "MistralForCausalLM",
)


def save_pretrained(
    model: DemiurgicPreTrainedModel, folder: str | os.PathLike[str], max_shard_size: int | str = "5GB"
) -> None:
    """Write `model` to `folder` (made with its parents): config.json and model.safetensors.

    Weights above `max_shard_size` are split into model-0000i-of-0000n.safetensors with an index,
    model.safetensors.index.json. Tied weights are written once. Everything is first written under temporary
    names, so a call that fails or is interrupted leaves an older checkpoint in the folder as it was.

    Args:
        max_shard_size: bytes, or a string like "500MB" or "5GB" (powers of 1000; "GiB" of 1024). A larger
            single tensor gets a file of its own.

    Raises:
        ValueError: `max_shard_size` cannot be read, or the config has been changed to one of no model.
        RuntimeError: the parameters are not those that the config describes, or are on the meta device.
        NotADirectoryError: `folder` is a file.
    """
    limit = _bytes_of(max_shard_size)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the name of a folder to save the model in.")
    tensors = dict(model.state_dict())
    _refuse_differences(
        "The model cannot be saved: its parameters are not those of its config",
        _shapes(_on_meta(type(model), model.config)),
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if any(tensor.is_meta for tensor in tensors.values()):
        raise RuntimeError("The model is on the meta device: it has no values to save. Load or initialise it first.")
    if model.config.tie_word_embeddings:
        tensors.pop(_HEAD, None)

    shards = _shards(tensors, limit)
    texts = {"config.json": {"model_type": "demiurgic", **model.config.to_dict()}}
    if len(shards) > 1:
        texts["model.safetensors.index.json"] = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {name: file for file, shard in shards.items() for name in shard},
        }
    folder.mkdir(parents=True, exist_ok=True)
    _write_and_rename(folder, shards, texts)
    for path in folder.glob("model*.safetensors*"):  # of an older checkpoint that was split otherwise
        if path.name not in {*shards, *texts} and re.fullmatch(
            r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", path.name
        ):
            path.unlink()
    logger.info("Saved %d parameters to %s.", model.num_parameters(), folder)


def _write_and_rename(folder: Path, shards: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, Any]) -> None:
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in (*shards, *texts)}
    try:
        for name, shard in shards.items():
            contiguous = {key: tensor.detach().contiguous() for key, tensor in shard.items()}
            save_file(contiguous, temporary[name], metadata={"format": "pt"})
        for name, text in texts.items():
            temporary[name].write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        readable = temporary["config.json"].stat().st_mode  # as the process's umask has it; safetensors writes 0600
        for path in temporary.values():
            path.chmod(readable)
            with path.open("rb") as written:
                os.fsync(written.fileno())  # the data before the names
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _shards(tensors: Mapping[str, Tensor], limit: int) -> dict[str, dict[str, Tensor]]:
    """The tensors by file name, in their order, a new file wherever `limit` bytes would be exceeded."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _bytes_of(size: int | str) -> int:
    units = {"": 1, "B": 1} | {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}
    units |= {f"{p}IB": 1024**n for n, p in enumerate("KMGT", 1)}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", str(size).strip().upper())
    if not match or match[2] not in units or float(match[1]) <= 0:
        raise ValueError(f'max_shard_size must be a positive number of bytes or a string like "5GB", not {size!r}.')
    return int(float(match[1]) * units[match[2]])


def from_pretrained(
    model_class: type[Model],
    folder: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
) -> Model:
    """The model that a checkpoint folder holds, in eval mode, every parameter trainable.

    The weights are model.safetensors or pytorch_model.bin (read with weights_only=True), in one file or in
    shards with an index. In a Hugging Face folder the eos_token_id of generation_config.json replaces the
    config's; its sampling options are not used. Each tensor is copied once, straight to its device and dtype.

    Args:
        folder: of ours, of the origin, or of a Hugging Face Llama (or a Mistral without a sliding window).
        dtype: a floating-point dtype for all parameters, also by name ("bfloat16"). None, "auto": as stored.
        device: where the parameters go. None: torch's default device.

    Raises:
        FileNotFoundError: no such folder, no config.json, no weights, or a shard is missing.
        TypeError: the config has a key that is not implemented and not known to be harmless.
        ValueError: a config value, architecture or dtype that is not supported, or a config that is not JSON.
        RuntimeError: missing, unexpected or mis-shaped tensors (listed), or an unreadable file (named).
    """
    wanted = _dtype_of(dtype)
    target = torch.get_default_device() if device is None else torch.device(device)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r}. Give a checkpoint's folder here; nothing is downloaded."
        )
    config = read_config(folder)
    files = _weight_files(folder)
    model = _on_meta(model_class, config)
    expected = _shapes(model)
    headless = not isinstance(model, DemiurgicForCausalLM)

    found: dict[str, Shape] = {}
    loaded: dict[str, Tensor] = {}
    for file in files:
        for stored_name, tensor in _tensors(file):
            name = current_name(stored_name)
            if headless and name is not None:  # a decoder alone also reads the checkpoint of a whole model
                name = None if name == _HEAD else name.removeprefix("model.")
            if name is None:
                continue
            found[name] = tuple(tensor.shape)
            if expected.get(name) == found[name]:
                loaded[name] = _owned(tensor, stored_name, file, wanted, target)
    if config.tie_word_embeddings and not headless:
        _tie(loaded, found, folder)
    _refuse_differences(f"{folder} does not hold the model that its config.json describes", expected, found)
    model.load_state_dict(loaded, assign=True)
    logger.info("Loaded %d parameters from %s.", model.num_parameters(), folder)
    return model.eval()


def _owned(tensor: Tensor, name: str, file: Path, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """A copy in memory of its own: mapped pages would change under a live model when the file does."""
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        raise RuntimeError(
            f"{file}: {name} is stored as {tensor.dtype}, a quantised form that is not supported. "
            "Supported are float32, bfloat16, float16 and float64."
        )
    return tensor.to(device, dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)


def _tie(loaded: dict[str, Tensor], found: dict[str, Shape], folder: Path) -> None:
    """Of tied weights one may be stored, or both if they agree; leave both names with one tensor."""
    if _EMBEDDING in loaded and _HEAD in loaded and not torch.equal(loaded[_EMBEDDING], loaded[_HEAD]):
        raise RuntimeError(
            f"{folder}: config.json says tie_word_embeddings, but {_EMBEDDING} and {_HEAD} differ. "
            'Set "tie_word_embeddings": false to load both.'
        )
    for missing, present in ((_EMBEDDING, _HEAD), (_HEAD, _EMBEDDING)):
        if missing not in found and present in found:
            found[missing] = found[present]
        if present in loaded:
            loaded[missing] = loaded[present]


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise ValueError(f"dtype must be float32, bfloat16, float16, float64 or None (as stored), not {dtype!r}.")
    return found


class _NoInitialisation(TorchFunctionMode):
    """Leaves parameters as they are: on meta, torch.nn.init would import torch._dynamo, which takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fills = function in (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_)
        if fills or getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def _on_meta(model_class: type[Model], config: DemiurgicConfig) -> Model:
    """The model without memory for its parameters."""
    with torch.device("meta"), _NoInitialisation():
        return model_class(config)


def _shapes(model: torch.nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _refuse_differences(complaint: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raise RuntimeError listing what is missing, unexpected or of another shape."""
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {_first(names)}" for kind, names in differences.items() if names)
        raise RuntimeError(f"{complaint}. Tensors {listed}.")


def _first(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _weight_files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        path = folder / name
        if path.is_file():
            return _indexed_files(path) if name.endswith(".index.json") else [path]
    raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(_WEIGHTS)} is there.")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f'{index} is not an index of shards: it has no "weight_map".')
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}; shards must lie in the same folder.")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names the shard {name}, which is not in the folder.")
    return [index.parent / name for name in names]


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one file, on the CPU and mapped from the disk where the format allows it."""
    if file.suffix == ".bin":
        yield from _pickled_tensors(file)
        return
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                yield name, stored.get_tensor(name)
    except SafetensorError as error:
        raise RuntimeError(_unreadable(file, "safetensors", error)) from error


def _pickled_tensors(file: Path) -> Iterable[tuple[str, Tensor]]:
    try:  # the oldest files are no archives and cannot be mapped
        stored = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise RuntimeError(
            f"{file} is refused: it is damaged or holds more than tensors, which could run code when loaded."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise RuntimeError(_unreadable(file, "PyTorch", error)) from error
    if not isinstance(stored, dict) or not all(isinstance(tensor, Tensor) for tensor in stored.values()):
        raise RuntimeError(f"{file} is not a state dict: it must map names to tensors and hold nothing else.")
    return stored.items()


def _unreadable(file: Path, kind: str, error: Exception) -> str:
    return (
        f"{file} ({file.stat().st_size} bytes) is not a whole {kind} file; it may be truncated, "
        f"so copy it again ({_sentence(error)})."
    )


def _sentence(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def read_config(folder: Path) -> DemiurgicConfig:
    """The config of a checkpoint folder: of ours, of the origin, or of a Hugging Face Llama.

    Raises:
        FileNotFoundError, TypeError, ValueError: see from_pretrained.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so what model it holds is unknown.")
    settings = _read_json(path)
    if _kind(settings) in _DEFAULTS:
        generation = folder / "generation_config.json"
        if generation.is_file() and (eos := _read_json(generation).get("eos_token_id")) is not None:
            settings["eos_token_id"] = eos
    try:
        return DemiurgicConfig.from_dict(_translated(settings))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def _kind(settings: dict[str, Any]) -> str:
    """The model type the settings name; older Hugging Face files name only an architecture."""
    if settings.get("model_type"):
        return str(settings["model_type"]).lower()
    architecture = next(iter(settings.get("architectures") or ["Demiurgic"]))
    return re.sub("(For|Model).*", "", architecture).lower()


def _translated(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings in our terms; Hugging Face's are renamed or, where they are switched off, dropped."""
    for architecture in settings.get("architectures") or []:
        if architecture not in _ARCHITECTURES:
            raise ValueError(f"architecture {architecture} is not supported; supported: {', '.join(_ARCHITECTURES)}.")
    kind = _kind(settings)
    if kind == "demiurgic":
        return settings
    if kind not in _DEFAULTS:
        raise ValueError(f"model_type {kind!r} is not supported; supported: demiurgic, {', '.join(_DEFAULTS)}.")
    settings = _DEFAULTS[kind] | {key: value for key, value in settings.items() if key != "model_type"}

    activation = settings.pop("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"hidden_act {activation!r} is not supported in a gated MLP; supported: silu (swish).")
    settings["activation_function"] = "swiglu"
    settings["attention_head_dim"] = settings.pop("head_dim", None)
    if settings["pad_token_id"] == -1:
        settings["pad_token_id"] = None  # how early Llama folders say that there is none
    _drop_where_off(settings, "sliding_window")
    _drop_where_off(settings, "partial_rotary_factor", 1.0)
    if set(settings.get("layer_types") or []) <= {"full_attention"}:
        settings.pop("layer_types", None)
    _translate_rope(settings)
    return settings


def _drop_where_off(settings: dict[str, Any], key: str, *off: Any) -> None:
    if (value := settings.pop(key, None)) not in (None, *off):
        raise ValueError(f"{key} = {value!r} is not implemented; it would change the mathematics of the model.")


def _translate_rope(settings: dict[str, Any]) -> None:
    """rope_theta and rope_scaling from either spelling: apart, or inside rope_parameters (transformers 5)."""
    inner = settings.pop("rope_parameters", None)
    outer = settings.pop("rope_scaling", None)
    scaling = outer or inner or {}
    if not isinstance(scaling, dict):
        raise TypeError(f"rope_scaling and rope_parameters must be objects, not {scaling!r}.")
    scaling = dict(scaling)
    _drop_where_off(scaling, "partial_rotary_factor", 1.0)
    if (theta := scaling.pop("rope_theta", None)) is not None:
        settings["rope_theta"] = theta
    if settings.get("rope_theta") is None:
        settings.pop("rope_theta", None)
    original = settings.pop("original_max_position_embeddings", None)
    if original is not None and rope_type_of(scaling) in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = original
    settings["rope_scaling"] = None if scaling in ({}, {"rope_type": "default"}) else scaling
