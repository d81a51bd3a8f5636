"""A result as HTML: tokens coloured by probability, with what else might have stood there."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demiurgic.output import GenerationOutput
from demiurgic.printable import printable
from demiurgic.text_stream import decoder_of

_CONTEXT = 4  # ids before a token that it is decoded with: some tokenizers join words, or cut characters in two
_STYLE = """<style>
.dmg pre { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; margin: .2em 0 1em 0 }
.dmg .t { position: relative; color: #111; border-radius: 2px }
.dmg .p { opacity: .6 }
.dmg .c { display: none; position: absolute; left: 0; top: 1.6em; z-index: 9; background: #fff; color: #111;
  border: 1px solid #999; border-radius: 4px; padding: .4em .6em; font-size: 85%; line-height: 1.4; white-space: pre }
.dmg .t:hover > .c { display: block }
.dmg .c td, .dmg .c th { padding: 0 .8em 0 0; text-align: left; border: 0 }
.dmg .c .own { font-weight: bold }
</style>"""
_BLANKS = {ord(" "): "·", ord("\n"): "⏎", ord("\t"): "⇥"}


@dataclass(frozen=True)
class HtmlView:
    """A piece of HTML that a notebook shows by itself; `html` is the text, `save` makes a page of it."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> None:
        """Writes a page of its own."""
        head = '<!doctype html><html><head><meta charset="utf-8"><title>Generated text</title></head><body>'
        Path(path).write_text(f"{head}{self.html}</body></html>\n", encoding="utf-8")


def html_view(result: GenerationOutput, tokenizer: Any) -> HtmlView:
    """The rows of a result, each token coloured by its probability by the model: from red, 0, to green, 1.

    Under the mouse a token tells its probability by the model and after the options. With `top_logprobs=k` it also
    tells what else was likely: before the options, after them, or with `top_logprobs_mode="both"` side by side. The
    prompt's tokens have colours with `prompt_logprobs=True`. There is no script in it, and all text is escaped.

    Args:
        result: of generate with return_dict_in_generate=True, or Stream.result().
        tokenizer: anything with `decode(ids)`, as what made the ids.

    Raises:
        TypeError: a result that is none, or a tokenizer without `decode`.
    """
    if not isinstance(result, GenerationOutput):
        raise TypeError(
            f"result is a {type(result).__name__}, but must be a GenerationOutput: pass return_dict_in_generate=True "
            "to generate."
        )
    pieces = Pieces(tokenizer)
    rows = "".join(_row(result, row, pieces) for row in range(len(result.lengths)))
    return HtmlView(f'{_STYLE}<div class="dmg">{rows}</div>')


class Pieces:
    """The text that a token adds to those before it, special tokens included."""

    def __init__(self, tokenizer: Any) -> None:
        self._decode = decoder_of(tokenizer, skip_special_tokens=False).decode

    def after(self, context: list[int], token: int) -> str:
        context = context[-_CONTEXT:]
        before = self._text(context).rstrip("\ufffd")  # of a character that is not whole yet
        whole = self._text([*context, token])
        return whole[len(before) :] if context and whole.startswith(before) else self._text([token])

    def _text(self, ids: list[int]) -> str:
        return str(self._decode(ids)) if ids else ""


def _row(result: GenerationOutput, row: int, pieces: Pieces) -> str:
    facts = [f"row {row}", f"{result.lengths[row]} tokens", f"ended by {result.finish_reasons[row]}"]
    facts += [f"seed {result.seeds[row]}", *filter(None, [result.errors[row]])]
    tokens = [*_prompt(result, row, pieces), *_completion(result, row, pieces)]
    return f"<small>{html.escape(' · '.join(facts))}</small><pre>{''.join(tokens)}</pre>"


def _prompt_ids(result: GenerationOutput, row: int) -> list[int]:
    width = result.sequences.shape[1] - max(result.lengths, default=0)
    ids: list[int] = result.sequences[row, width - result.prompt_lengths[row] : width].tolist()
    return ids


def _prompt(result: GenerationOutput, row: int, pieces: Pieces) -> Iterator[str]:
    ids = _prompt_ids(result, row)
    scores = [] if result.prompt_logprobs is None else result.prompt_logprobs[row].tolist()[-len(ids) :]
    for i, token in enumerate(ids):
        text = pieces.after(ids[:i], token)
        if scores and not math.isnan(scores[i]):
            yield _token(text, scores[i], _card(text, {"by the model": scores[i]}, [], token))
        else:
            yield f'<span class="p">{html.escape(printable(text))}</span>'


def _completion(result: GenerationOutput, row: int, pieces: Pieces) -> Iterator[str]:
    ids = _prompt_ids(result, row)
    raw, processed = result.logprobs[row].tolist(), result.processed_logprobs[row].tolist()
    for i, token in enumerate(result.completions[row]):
        text = pieces.after(ids, token)
        own = {"by the model": raw[i], "after the options": processed[i]}
        tops = [
            (title, [(t, pieces.after(ids, t), p) for t, p in listed])
            for title, listed in _alternatives(result, row, i)
        ]
        yield _token(text, own["by the model"], _card(text, own, tops, token))
        ids.append(token)


def _alternatives(result: GenerationOutput, row: int, i: int) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """For each distribution that the result tells of: its title, the top ids and their log-probabilities."""
    first = "after the options" if result.top_logprobs_mode == "processed" else "by the model"
    for title, prefix in ((first, ""), ("after the options", "processed_")):
        ids, logprobs = getattr(result, f"{prefix}top_logprob_ids"), getattr(result, f"{prefix}top_logprobs")
        if ids is not None:
            listed = zip(ids[row, i].tolist(), logprobs[row, i].tolist(), strict=True)
            yield title, [(token, logprob) for token, logprob in listed if token >= 0]


def _token(text: str, logprob: float, card: str) -> str:
    colour = f"hsl({120 * math.exp(logprob):.0f} 75% 85%)"
    shown = html.escape(printable(text).replace("\n", "⏎\n")) or "·"
    return f'<span class="t" style="background: {colour}">{shown}{card}</span>'


def _card(text: str, own: dict[str, float], tops: list[tuple[str, list[tuple[int, str, float]]]], token: int) -> str:
    """What is shown under the mouse."""
    lines = "".join(f"<tr><td>{title}</td><td>{_percent(p)}</td></tr>" for title, p in own.items())
    columns = []
    for title, listed in tops:
        entries = [
            f"<tr{' class=own' if t == token else ''}><td>{_visible(piece)}</td><td>{_percent(p)}</td></tr>"
            for t, piece, p in listed
        ]
        columns.append(f"<td><table><tr><th colspan=2>{title}</th></tr>{''.join(entries)}</table></td>")
    below = f"<table><tr>{''.join(columns)}</tr></table>" if columns else ""
    return f'<span class="c"><b>{_visible(text)}</b> · id {token}<table>{lines}</table>{below}</span>'


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.3g} %"


def _visible(text: str) -> str:
    return html.escape(printable(text).translate(_BLANKS)) or "(no text)"
