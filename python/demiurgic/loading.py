"""A model and its tokenizer, by the name of a shipped one or from a checkpoint folder."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import torch

from demiurgic.model import DemiurgicForCausalLM
from demiurgic.tokenizer import Tokenizer

SHIPPED_MODELS = {"tiny": Path(__file__).parent / "assets" / "tiny"}


def load(
    name: str | os.PathLike[str],
    *,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | str | None = None,
) -> tuple[DemiurgicForCausalLM, Tokenizer]:
    """A model, in eval mode and trainable, and its tokenizer.

    Args:
        name: "tiny", the code model that ships with demiurgic, or a folder with config.json, weights and
            tokenizer.json: of ours, of the origin, or of a Hugging Face Llama. A folder that is itself called "tiny" is
            "./tiny". Nothing is downloaded.
        device: where the parameters go. None: torch's default device.
        dtype: a floating-point dtype for all parameters, also by name ("bfloat16"). None, "auto": as stored.

    Returns:
        (model, tokenizer).

    Raises:
        TypeError: `name` is not a name or a path; the config has a key that is not implemented.
        FileNotFoundError: no such model or folder, or config.json, weights or tokenizer.json are missing in it.
        NotADirectoryError: `name` is a file.
        ValueError: a device that torch cannot use here, a dtype, config or tokenizer that is not supported.
        RuntimeError: the weights are not those that the config describes, or a file is damaged.
    """
    folder = model_folder(name)
    _check_device(device)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json. Copy the one that the model was trained with into it (save_pretrained of "
            "a Hugging Face fast tokenizer writes one), or load the weights alone with "
            "DemiurgicForCausalLM.from_pretrained."
        )
    tokenizer = Tokenizer(folder)  # first: it takes no time, and the weights may
    return DemiurgicForCausalLM.from_pretrained(folder, dtype=dtype, device=device), tokenizer


def model_folder(name: str | os.PathLike[str]) -> Path:
    """The folder of a shipped model or of a checkpoint; see load for what it raises."""
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"The model is {name!r}; give the name of one or the path of its folder.")
    text = str(os.fspath(name))
    if text in SHIPPED_MODELS:
        return SHIPPED_MODELS[text]
    folder = Path(text)
    if text and folder.is_dir():
        return folder
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give the folder that it lies in.")
    near = difflib.get_close_matches(text, SHIPPED_MODELS, n=1)
    raise FileNotFoundError(
        f"There is no model and no folder {text!r}{f'; did you mean {near[0]!r}?' if near else '.'} Allowed are the "
        f"shipped {', '.join(map(repr, SHIPPED_MODELS))} and folders with config.json, weights and tokenizer.json; "
        "nothing is downloaded."
    )


def _check_device(device: torch.device | str | int | None) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device is {str(device)!r}, which torch cannot use here: {reason}") from error
