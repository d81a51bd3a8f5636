"""What people see: the live text of a stream, and a result as HTML."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from models import fixed_logits_model, tiny_model

from demiurgic import GenerationError, display, generate, html_view, show, stream
from demiurgic.html_view import Pieces
from demiurgic.printable import printable


class Words:
    """A tokenizer: the id i is the i-th of these; 6 and 7 are halves of a character, 8 is special."""

    WORDS = ("a", " b", "<b>&amp;", "\n", "\x1b[1m", '"', "", "", "")

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        text, i = "", 0
        while i < len(ids):
            if ids[i : i + 2] == [6, 7]:
                text, i = text + "é", i + 2
                continue
            special = "" if skip_special_tokens else "<eos>"
            text += special if ids[i] == 8 else "\ufffd" if ids[i] in (6, 7) else self.WORDS[ids[i]]
            i += 1
        return text


def result_of(**options: Any) -> Any:
    settings = {"max_new_tokens": 12, "seed": 4, "top_k": 0, "top_p": 1, "return_dict_in_generate": True}
    return generate(fixed_logits_model([0.1 * i for i in range(9)]), [[0, 2], [1]], **(settings | options))


# ---- HTML ----------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The tags of a page, checked to be closed in order, and its visible text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert all(name in {"class", "style", "colspan"} for name, _ in attrs)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(view: Any) -> Tags:
    tags = Tags()
    tags.feed(view._repr_html_())
    tags.close()
    assert tags.open == []
    return tags


TOLD = {"top_logprobs": 9, "top_logprobs_mode": "both", "prompt_logprobs": True}


@pytest.mark.parametrize("options", [{}, TOLD, {"top_logprobs": 2}, {"num_return_sequences": 2, **TOLD}], ids=str)
def test_a_view_has_nothing_of_the_tokens_but_text(options: dict[str, Any]) -> None:
    tags = parsed(html_view(result_of(**options), Words()))
    assert tags.seen <= {"style", "div", "small", "pre", "span", "b", "table", "tr", "td", "th"}
    assert "<b>&amp;" in tags.text  # the token with markup in it is shown as it is written
    assert "\x1b" not in tags.text


def test_tokens_are_coloured_by_their_probability_by_the_model() -> None:
    options = {"max_new_tokens": 1, "top_k": 1, "return_dict_in_generate": True}
    sure, unsure = (
        html_view(generate(fixed_logits_model(logits), [0], **options), Words())
        for logits in ([90.0, 0, 0, 0], [0.1, 0, 0, 0])
    )
    assert re.findall(r"background: hsl\((\d+)", sure.html) == ["120"]
    assert re.findall(r"background: hsl\((\d+)", unsure.html) == ["32"]  # of 120: 0.269
    assert "by the model</td><td>26.9 %" in unsure.html
    assert "after the options</td><td>100 %" in unsure.html


@pytest.mark.parametrize(
    ("mode", "titles"),
    [("raw", ["by the model"]), ("processed", ["after the options"]), ("both", ["by the model", "after the options"])],
)
def test_alternatives_before_and_after_the_options(mode: str, titles: list[str]) -> None:
    result = result_of(top_logprobs=3, top_logprobs_mode=mode, top_k=2, max_new_tokens=1)
    card = html_view(result, Words()).html
    assert re.findall(r"<th colspan=2>([^<]*)</th>", card)[: len(titles)] == titles
    assert card.count("class=own") == 2 * len(titles)  # the token itself, in each list of both rows
    if mode == "processed":
        assert len(re.findall(r"<tr[^>]*><td>[^<]*</td><td>[^<]*%</td></tr>", card)) == 2 * (2 + 2)  # top_k left two


def test_the_prompt_has_colours_where_it_has_scores() -> None:
    result = result_of(prompt_logprobs=True, max_new_tokens=1)
    plain = result_of(max_new_tokens=1)
    assert html_view(result, Words()).html.count('class="t"') == 1 + 2  # the second token of the first prompt
    assert html_view(plain, Words()).html.count('class="t"') == 2
    assert html_view(plain, Words()).html.count('class="p"') == 3


def test_pieces_of_tokens() -> None:
    pieces = Pieces(Words())
    assert pieces.after([], 1) == " b"
    assert pieces.after([0], 1) == " b"
    assert pieces.after([0, 6], 7) == "é"  # a character that becomes whole
    assert pieces.after([0], 8) == "<eos>"


def test_rows_tell_how_they_ended() -> None:
    failed = generate(
        fixed_logits_model([0.0, 1.0]), [0], do_sample=False, no_repeat_ngram_size=1, return_dict_in_generate=True
    )
    text = parsed(html_view(failed, Words())).text
    assert "row 0 · 1 tokens · ended by error" in text and "forbid every token" in text
    nothing = generate(fixed_logits_model([0.0, 1.0]), [0], max_new_tokens=0, return_dict_in_generate=True)
    assert "0 tokens · ended by length" in parsed(html_view(nothing, Words())).text


def test_a_page_of_its_own(tmp_path: Path) -> None:
    view = html_view(result_of(), Words())
    view.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert view.html in page and page.startswith("<!doctype html>") and 'charset="utf-8"' in page


@pytest.mark.parametrize(
    ("result", "tokenizer", "message"),
    [(None, Words(), "result is a NoneType, but must be a GenerationOutput"), (0, "x", "tokenizer is a str, but must")],
)
def test_what_a_view_refuses(result: Any, tokenizer: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        html_view(result_of() if result == 0 else result, tokenizer)


# ---- live text -----------------------------------------------------------------------------------------------------


def printed(monkeypatch: pytest.MonkeyPatch, prompts: Any, **options: Any) -> tuple[str, Any]:
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    settings = {"max_new_tokens": 6, "seed": 1, "eos_token_id": [], "tokenizer": Words()}
    result = show(stream(fixed_logits_model([0.1 * i for i in range(9)]), prompts, **(settings | options)), "say: ")
    return out.getvalue(), result


def test_one_row_is_printed_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    text, result = printed(monkeypatch, [0])
    said = Words().decode(result.completions[0])
    assert text == f"say: {said}" + "\n" * (not said.endswith("\n"))


def test_several_rows_are_printed_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text, result = printed(monkeypatch, [[0], [1]], stop_token_ids=[3])
    for row in (0, 1):
        said = Words().decode(result.completions[row]).removesuffix("\n")
        assert f"# {row + 1} of 2, ended by {result.finish_reasons[row]}\nsay: {said}\n" in text


class Notebook:
    """IPython's display, as far as show uses it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures: list[str] = []
        monkeypatch.setattr(display, "in_notebook", lambda: True)
        monkeypatch.setattr("IPython.display.display", self.display)

    def display(self, picture: Any, display_id: bool) -> Notebook:
        assert display_id
        self.update(picture)
        return self

    def update(self, picture: Any) -> None:
        self.pictures.append(picture.data)


def test_a_notebook_shows_live_text(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    notebook = Notebook(monkeypatch)
    monkeypatch.setattr(display, "_INTERVAL", 0.0)
    text, result = printed(monkeypatch, [[0], [1]])
    assert text == ""
    assert len(notebook.pictures) == 2 + 2 * 6  # at first, for each event, and at the end
    for row in (0, 1):
        assert html.escape(printable(Words().decode(result.completions[row]))) in notebook.pictures[-1]
    assert notebook.pictures[-1].count(">6 tokens,") == 2 and notebook.pictures[-1].count("ended by length") == 2
    assert "<b>&amp;" not in notebook.pictures[-1]  # escaped


def test_ctrl_c_shows_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    events = stream(tiny_model(), [1, 2], max_new_tokens=50, seed=0, eos_token_id=[], tokenizer=Numbers())
    step, steps = events._generation.advance, iter(range(3))

    def advance() -> bool:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(events._generation, "advance", advance)
    result = show(events)
    assert (result.finish_reasons, result.lengths) == (["cancelled"], [3])


class Numbers:
    def decode(self, ids: list[int]) -> str:
        return "".join(f"{token} " for token in ids)


def test_errors_come_after_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    model = fixed_logits_model([0.0, 1.0])
    with pytest.raises(GenerationError, match="forbid every token"):
        show(stream(model, [0], do_sample=False, no_repeat_ngram_size=1, tokenizer=Words()))
    assert out.getvalue() == " b\n"


@pytest.mark.parametrize(("wrong", "name"), [(3, "int"), (None, "NoneType"), (iter([]), "list_iterator")])
def test_what_is_no_stream_is_refused(wrong: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"stream is of type {name}, but must be a Stream: show what demiurgic.stream"):
        show(wrong)


def test_a_stream_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no text to show: pass tokenizer= to stream"):
        show(stream(tiny_model(), [1, 2], max_new_tokens=2))
