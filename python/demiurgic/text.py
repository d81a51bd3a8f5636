"""Texts that models are asked with and make: blocks of code in them, repetitions, and how long an answer takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

CODE_STOPS = ("\n\n\n", "```\n```")
"""Strings that end a piece of code, for `stop=`: two empty lines, and a fenced block that is followed by another."""

_SCOPES = {"function": (128, 256), "class": (256, 512), "module": (512, 1024)}
_LONG_PROMPT = 2000  # characters
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def extract_first_code_block(text: str, language: str | None = None, *, unclosed: bool = True) -> str | None:
    """The content of the first complete fenced block of a Markdown text, without its fences.

    A fence is as CommonMark has it (0.31.2, section 4.5): a line of three or more ` or ~, indented by at most three
    blanks; the opening one may name a language after it; the closing one has the same character at least as often and
    nothing after it. One thing more is taken for an opening fence, because models write it: a fence that repeats
    itself at once, as in "``` ```cpp". Three backticks inside of a line open nothing.

    Args:
        text: any text.
        language: only blocks of this language (the first word after the fence, in any case of letters) count.
        unclosed: where no block is complete, take the first that is open at the end of the text.

    Returns:
        The lines between the fences with their line ends; None where there is no such block.

    Raises:
        TypeError: a text or language that is not a str.
    """
    _check_str("text", text)
    if language is not None:
        _check_str("language", language)
    open_block = None
    for name, content, complete in _blocks(text):
        if language is not None and name.lower() != language.lower():
            continue
        if complete:
            return content
        open_block = content
    return open_block if unclosed else None


def _blocks(text: str) -> Iterator[tuple[str, str, bool]]:
    """Language, content and completeness of the fenced blocks of a text, in order."""
    fence, name, content = "", "", [""]
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        found = _FENCE.fullmatch(line.rstrip("\r\n"))
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip(" \t"):
                yield name, "".join(content), True
                fence = ""
            else:
                content.append(line)
        elif found and (info := _info(found[1][0], found[2])) is not None:
            fence, name, content = found[1], info, []
    if fence:
        yield name, "".join(content), False


def _info(mark: str, rest: str) -> str | None:
    """The language that stands after an opening fence, "" if there is none; None where the line is no fence."""
    words = rest.split()
    while words and words[0].startswith(mark * 3):
        words[0] = words[0].lstrip(mark)
        words = words if words[0] else words[1:]
    if mark == "`" and any(mark in word for word in words):
        return None
    return words[0] if words else ""


def repetition_score(tokens: Any, n: int = 4) -> float:
    """The share of tokens that lie in an n-gram which the row has more than once.

    With N tokens t_0 ... t_(N-1), token i counts if some run of n tokens that contains it, t_j ... t_(j+n-1) with
    j <= i < j + n, stands at two or more places of the row; places may overlap. The score is the number of tokens that
    count divided by N: 0.0 where no n-gram comes twice, and for rows of n tokens or fewer; 1.0 for a row that
    is one cycle again and again, twice or more and by n tokens or more.

    Args:
        tokens: ids [N] as a list or an integer tensor; a str is taken as its words and signs.
        n: length of the runs, 1 or more.

    Raises:
        TypeError: something that is no row of tokens.
        ValueError: an n below 1.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n is {n!r}, but must be an integer.")
    if n < 1:
        raise ValueError(f"n is {n}, but must be 1 or more.")
    row = _row(tokens)
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    counts = Counter(grams)
    repeated, covered = 0, 0  # `covered`: all tokens before it have been counted
    for start, gram in enumerate(grams):
        if counts[gram] > 1:
            repeated += start + n - max(covered, start)
            covered = start + n
    return repeated / len(row) if row else 0.0


def _row(tokens: Any) -> list[Any]:
    if isinstance(tokens, str):
        return re.findall(r"\w+|[^\w\s]", tokens)
    row = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if not isinstance(row, Sequence) or any(isinstance(token, list | tuple) for token in row):
        raise TypeError(f"tokens must be a row of ids or a str, not {type(tokens).__name__}; give one row at a time.")
    return list(row)


def suggest_max_new_tokens(prompt: str, scope: str | None = None) -> int:
    """How many new tokens to allow for what a prompt asks for.

    A function takes 128 to 256, a class 256 to 512, a module 512 to 1024. Within the range the number grows with the
    prompt, because a longer description asks for more: low + (high - low) * min(characters, 2000) / 2000, rounded down
    to a multiple of 8. These are rules of thumb; the ranges are those of the origin of this package.

    Args:
        prompt: the text that is to be continued, code or a request in words.
        scope: "function", "class" or "module". None reads it off the prompt: the kind of the last definition that it
            begins (`def`, `class`); else the last of the words function, method, class, module, file, script and
            program that it has; else a function.

    Raises:
        TypeError: a prompt that is not a str.
        ValueError: another scope.
    """
    _check_str("prompt", prompt)
    if scope is not None and scope not in _SCOPES:
        raise ValueError(
            f"scope is {scope!r}, but must be one of {', '.join(_SCOPES)}, or None to read it off the prompt."
        )
    low, high = _SCOPES[scope or _scope(prompt)]
    return int(low + (high - low) * min(len(prompt), _LONG_PROMPT) / _LONG_PROMPT) // 8 * 8


def _scope(prompt: str) -> str:
    definitions = re.findall(r"^[ \t]*(?:async[ \t]+)?(def|class)[ \t]+\w", prompt, re.MULTILINE)
    if definitions:
        return "function" if definitions[-1] == "def" else "class"
    words = re.findall(r"\b(function|method|class|module|file|script|program)\b", prompt.lower())
    last = words[-1] if words else "function"
    return {"function": "function", "method": "function", "class": "class"}.get(last, "module")


def _check_str(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}.")
