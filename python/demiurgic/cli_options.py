"""The options of generation as flags of the command line, all from the one table in the core."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer

from demiurgic import _C

OPTIONS: dict[str, dict[str, Any]] = {option["name"]: option for option in _C.options()}

_ALIASES = {"max_new_tokens": ["--max-tokens"]}
_METAVARS = {"int": "INT", "float": "NUMBER", "list[int]": "INT,...", "dict[int, float]": "ID=NUMBER,..."}
_METAVARS |= {"str": "TEXT", "list[str]": "TEXT"}
_LISTS = ("list[int]", "dict[int, float]", "list[str]")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}

# Where the command line has other defaults than generate: nobody is there to end a text that goes round in circles. Ten
# copies are more than the rows of a small table of equal values have.
DEFAULTS: dict[str, Any] = {"stop_on_repetition": 10}


_HINTS = {
    "max_new_tokens": " `auto`: by what the prompt asks for.",
    "stop": " One a flag; \\n, \\t, \\r and \\\\ are read as in Python.",
    "stop_on_repetition": " `none` switches it off.",
}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command`, in place of its `**given`, a flag for every option; what is not used comes as None or []."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_flag(option))
        for name, option in OPTIONS.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return command


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def _flag(option: dict[str, Any]) -> Any:
    """What Typer reads of a parameter. Numbers come as texts, so that `none` can be one and errors are ours."""
    name, kinds = option["name"], _kinds(option)
    spelled = f"{flag_name(name)}/--no-{flag_name(name)[2:]}" if "bool" in kinds else flag_name(name)
    typed: Any = bool if "bool" in kinds else list[str] if kinds[-1] in _LISTS else str
    described = typer.Option(
        spelled,
        *_ALIASES.get(name, []),
        help=f"{option['doc']}{_HINTS.get(name, '')} [{_allowed(option)}]",
        metavar=_METAVARS.get(kinds[-1]),
        show_default=False,
    )
    return Annotated[typed | None, described]


def _kinds(option: dict[str, Any]) -> list[str]:
    """The types of an option without None, the most general last."""
    return [kind for kind in option["type"].split(" | ") if kind != "None"]


def _allowed(option: dict[str, Any]) -> str:
    """Range and defaults; that of the shipped model's preset where it is another."""
    default, preset = option["default"], getattr(_C.GenerationConfig.balanced_code(), option["name"])
    facts = [] if option["type"] == "bool" else [option["range"]]
    if option["name"] in DEFAULTS:
        return "; ".join([*facts, f"default {DEFAULTS[option['name']]}"])
    facts.append(f"default {default}" + (f", in balanced_code {preset}" if preset != default else ""))
    return "; ".join(facts)


def read_options(given: dict[str, Any]) -> dict[str, Any]:
    """Values of the flags that were used.

    Raises:
        ValueError: a text that is not of the option's type. Ranges are GenerationConfig's matter.
    """
    return {name: _value(OPTIONS[name], text) for name, text in given.items() if text is not None and text != []}


def _value(option: dict[str, Any], given: str | list[str] | bool) -> Any:
    """`3`, `0.5`, `none`; lists `1,2`, once or in several flags, `[]` for an empty one; `5=-1,7=2` for logit_bias;
    texts as they are, of a list one a flag. max_new_tokens may be `auto`."""
    if isinstance(given, bool):
        return given
    kinds = _kinds(option)
    if "list[str]" in kinds:
        return [re.sub(r"\\[ntr\\]", lambda escape: _ESCAPES[escape[0]], text) for text in given]
    text = given if isinstance(given, str) else ",".join(given)
    if text.strip().lower() == "none" and "None" in option["type"]:
        return None
    if kinds == ["str"] or (option["name"] == "max_new_tokens" and text == "auto"):
        return text
    try:
        if isinstance(given, str):
            return float(text) if "float" in kinds else int(text)
        items = text.strip().removeprefix("[").removesuffix("]").split(",")
        items = [] if items == [""] else items
        if "dict[int, float]" in kinds:
            return {int(token): float(bias) for token, bias in (item.split("=") for item in items)}
        ids = [int(item) for item in items]
        return ids[0] if len(ids) == 1 and "int" in kinds else ids
    except ValueError:
        form = ", written as ID=NUMBER,ID=NUMBER" if "dict[int, float]" in kinds else ""
        raise ValueError(f"{flag_name(option['name'])} is {text!r}, but must be {option['range']}{form}.") from None


def preset_named(name: str) -> _C.GenerationConfig:
    """The preset `name`, with `-` for `_` where the user likes; ValueError with the nearest name if there is none."""
    presets = _C.presets()
    known = name.replace("-", "_")
    if known not in presets:
        near = difflib.get_close_matches(known, presets, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"There is no preset {name!r}{hint} Presets: {', '.join(presets)}.")
    preset: _C.GenerationConfig = getattr(_C.GenerationConfig, known)()
    return preset
