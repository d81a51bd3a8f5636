"""Prepare the corpus of the shipped model: Python sources in, `train.jsonl`, `held_out.jsonl` and `tokenizer.json` out.

    python -m pip download --no-deps --only-binary :all: -d wheels -r examples/tiny_packages.txt
    python examples/prepare_tiny_data.py --wheels wheels --stdlib --out data

Every module becomes single functions, methods and small classes, dedented, because a completion model is mostly asked
about single functions; every second module also becomes runs of whole top-level statements. Long docstrings are cut to
their first paragraph, so that a small model spends its capacity on code. The modules listed in
`examples/tiny_held_out.txt` never reach the training side, nor does any document equal to one of theirs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
import sysconfig
import textwrap
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HELD_OUT_LIST = Path(__file__).with_name("tiny_held_out.txt")
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"]  # ids 0 to 5
# A line break and the indentation after it are one piece; a word may take one leading sign ("_name", ".join", "(self").
PIECES = Regex(r"\n[\n ]*|[^\s\p{L}\p{N}]?\p{L}+| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+| +|\s+")
LICENCES = ("MIT", "BSD", "APACHE", "PSF", "PYTHON SOFTWARE FOUNDATION", "ISC", "HPND", "UNLICENSE", "ZPL")
REFUSED_LICENCES = ("GPL", "MPL", "MOZILLA", "EPL")
SKIPPED_FOLDERS = re.compile(
    r"(^|/)(tests?|testing|_vendor|_?vendored|vendor|extern|externals|locale|migrations|site-packages|lib2to3|idlelib"
    r"|examples?|turtledemo|ensurepip|encodings|msgfmt|__pycache__|lexers|data|datasets|_?generated|smartquotes)(/|$)"
)
SKIPPED_FILES = re.compile(r"(^|/)(test_[^/]*|[^/]*_tests?|conftest|__main__|_?version|[^/]*tables?|pydoc_topics)\.py$")
MAX_FILE_BYTES, MAX_LINE, CHUNK_CHARS = 250_000, 160, 2400
MIN_DOCUMENT, MAX_DOCUMENT = 60, 6000  # longer ones are mostly tables, which would fill whole batches


@dataclass(frozen=True)
class Module:
    name: str  # "package/path/inside/it.py"
    text: str


def stdlib_modules() -> Iterator[Module]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        if not SKIPPED_FOLDERS.search(relative):
            yield from _decoded(f"stdlib/{relative}", path.read_bytes())


def wheel_modules(wheel: Path) -> Iterator[Module]:
    """The modules of one wheel; none if its metadata names no permissive licence."""
    with zipfile.ZipFile(wheel) as archive:
        if not is_permissive(wheel_licence(archive)):
            print(f"left out for its licence: {wheel.name} ({wheel_licence(archive)})")
            return
        for name in sorted(archive.namelist()):
            if name.endswith(".py"):
                yield from _decoded(name, archive.read(name))


def wheel_metadata(archive: zipfile.ZipFile) -> Message:
    [metadata] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
    return HeaderParser().parsestr(archive.read(metadata).decode())


def wheel_licence(archive: zipfile.ZipFile) -> str:
    """The licence a wheel states: the SPDX expression, else its classifiers, else the first line of its text."""
    header = wheel_metadata(archive)
    if header["License-Expression"]:
        return str(header["License-Expression"])
    classifiers = [c.split(" :: ")[-1] for c in header.get_all("Classifier", []) if c.startswith("License ::")]
    named = " / ".join(c for c in classifiers if c != "OSI Approved")
    return named or (header["License"] or "none stated").strip().splitlines()[0][:80]


def is_permissive(licence: str) -> bool:
    upper = licence.upper()
    return any(word in upper for word in LICENCES) and not any(word in upper for word in REFUSED_LICENCES)


def _decoded(name: str, raw: bytes) -> Iterator[Module]:
    if SKIPPED_FOLDERS.search(name) or SKIPPED_FILES.search(name) or len(raw) > MAX_FILE_BYTES:
        return
    try:
        yield Module(name, raw.decode("utf-8"))
    except UnicodeDecodeError:
        return


def clean(text: str) -> str | None:
    """The module with plain line ends, no trailing blanks, no licence head and short docstrings; None if unfit."""
    lines = [line.rstrip().expandtabs(4) for line in text.replace("\r\n", "\n").split("\n")]
    while lines and (not lines[0] or lines[0].startswith("#")):
        del lines[0]
    text = re.sub(r"\n{3,}", "\n\n\n", "\n".join(lines)).strip() + "\n"
    if any(len(line) > MAX_LINE for line in lines) or _is_table(text):
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return _shorten_docstrings(text, tree) if _indents_by_four(tree) else None


def _is_table(text: str) -> bool:
    """Mostly digits, quotes and commas: data, not code."""
    return sum(c.isdigit() or c in "\"',\\" for c in text) > 0.2 * len(text)


def _indents_by_four(tree: ast.Module) -> bool:
    blocks = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return all(node.body[0].col_offset == 4 or node.body[0].lineno == node.lineno for node in blocks)


def _shorten_docstrings(text: str, tree: ast.Module) -> str:
    lines = text.split("\n")
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    nodes = [n for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n, clean=False)]
    for node in sorted(nodes, key=lambda n: -n.body[0].lineno):
        doc = node.body[0]
        assert doc.end_lineno is not None
        if doc.end_lineno - doc.lineno < 3 or lines[doc.lineno - 1][: doc.col_offset].strip():
            continue
        paragraph = re.split(r"\n\s*\n", ast.get_docstring(node) or "")[0].strip()
        quoted = _quoted(paragraph, doc.col_offset)
        if quoted is not None:
            lines[doc.lineno - 1 : doc.end_lineno] = quoted
    return "\n".join(lines)


def _quoted(paragraph: str, indent: int) -> list[str] | None:
    if '"""' in paragraph or paragraph.endswith('"') or "\\" in paragraph or not paragraph:
        return None
    written = textwrap.indent(f'"""{paragraph}"""', " " * indent).split("\n")
    return written if len(written) == 1 else [*written[:-1], written[-1][:-3], " " * indent + '"""']


def chunks(text: str) -> Iterator[str]:
    """Runs of whole top-level statements, each run as long as CHUNK_CHARS allows."""
    lines = text.split("\n")
    run: list[str] = []
    start = 0
    for node in ast.parse(text).body:
        assert node.end_lineno is not None
        piece, start = lines[start : node.end_lineno], node.end_lineno
        if run and sum(map(len, run)) + sum(map(len, piece)) > CHUNK_CHARS:
            yield "\n".join(run)
            run = []
        run += piece
    yield "\n".join(run)


def functions(text: str) -> Iterator[str]:
    """Every function and method, and every class of one screen, as a document of its own."""
    lines = text.split("\n")
    for node in _definitions(ast.parse(text)):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        size = (node.end_lineno or first) - first + 1
        if size >= 3 and (size <= 40 or not isinstance(node, ast.ClassDef)):
            yield textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))


def _definitions(parent: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node)


def documents(modules: Iterable[Module], taken: set[bytes]) -> Iterator[dict[str, str]]:
    """The documents of the modules as JSON rows, each text once; `taken` holds the digests of texts already used."""
    for module in modules:
        pieces = [("function", piece) for piece in functions(module.text)]
        if _digest(module.name)[0] % 2 == 0:
            pieces += [("module", piece) for piece in chunks(module.text)]
        for kind, piece in pieces:
            piece = piece.strip("\n") + "\n"
            digest = _digest(re.sub(r"\s+", " ", piece))
            if MIN_DOCUMENT <= len(piece) <= MAX_DOCUMENT and digest not in taken:
                taken.add(digest)
                yield {"module": module.name, "kind": kind, "text": piece}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def list_sources(wheels: Path | None, stdlib: bool) -> Iterator[str]:
    """One line "name version, licence" for each source taken."""
    if stdlib:
        yield f"CPython standard library {platform.python_version()}, PSF-2.0"
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        with zipfile.ZipFile(wheel) as archive:
            header, licence = wheel_metadata(archive), wheel_licence(archive)
        if is_permissive(licence):
            yield f"{header['Name']} {header['Version']}, {licence}"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; the special tokens come first, so their ids are 0 to 5."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECES, behavior="isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=24,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> list[str]:
    texts = []
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            texts.append(row["text"])
    return texts


def gather(wheels: Path | None, stdlib: bool, sources: Path | None) -> Iterator[Module]:
    if stdlib:
        yield from stdlib_modules()
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        yield from wheel_modules(wheel)
    for path in sorted(sources.rglob("*.py")) if sources else []:
        yield from _decoded(path.relative_to(sources).as_posix(), path.read_bytes())  # type: ignore[arg-type]


def prepare(
    out: Annotated[Path, typer.Option(help="folder to write")],
    wheels: Annotated[Path | None, typer.Option(help="folder of downloaded wheels")] = None,
    stdlib: Annotated[bool, typer.Option(help="take this interpreter's standard library")] = False,
    sources: Annotated[Path | None, typer.Option(help="folder of .py files")] = None,
    held_out: Annotated[Path, typer.Option(help="list of module names kept out of training")] = HELD_OUT_LIST,
    vocab_size: Annotated[int, typer.Option(min=262)] = 4096,
) -> None:
    """Write train.jsonl, held_out.jsonl, tokenizer.json and sources.txt (names, versions, licences) to OUT."""
    out.mkdir(parents=True, exist_ok=True)
    names = {line for line in held_out.read_text().split() if not line.startswith("#")}
    cleaned = [Module(m.name, text) for m in gather(wheels, stdlib, sources) if (text := clean(m.text))]
    taken: set[bytes] = set()
    kept_out = write_jsonl(out / "held_out.jsonl", documents((m for m in cleaned if m.name in names), taken))
    train = write_jsonl(out / "train.jsonl", documents((m for m in cleaned if m.name not in names), taken))
    if not train:
        raise typer.BadParameter("no training document was found; give --wheels, --stdlib or --sources")
    train_tokenizer(train[:: max(1, len(train) // 40_000)], vocab_size).save(str(out / "tokenizer.json"))
    (out / "sources.txt").write_text("".join(f"{line}\n" for line in list_sources(wheels, stdlib)))
    characters = sum(map(len, train))
    print(
        f"{len(cleaned)} modules, {len(train)} training documents of {characters / 1e6:.1f}M characters, "
        f"{len(kept_out)} held out"
    )


if __name__ == "__main__":
    typer.run(prepare)
