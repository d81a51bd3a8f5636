"""The documents hold: their code runs as it stands, their links lead somewhere, their tables are the core's."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import demiurgic

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
GENERATION = REPOSITORY / "docs" / "generation_improvements.md"

# Blocks of these languages run; of the others nothing is claimed. There is no way to mark a block as not to be run.
RUN, SHOWN = {"python", "bash"}, {"text", ""}
# The README's two commands that install the package: .ci/run runs them, in an empty environment.
INSTALLS = "^pip install .* && (demiurgic generate|pytest)"


class Block(NamedTuple):
    language: str
    line: int  # of its first line of code, from 1
    text: str


def blocks(document: Path) -> Iterator[Block]:
    fence, start, code = "", 0, list[str]()
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if not line.startswith("```"):
            code.append(line)
        elif not fence:
            fence, start, code = line, number + 1, []
        else:
            assert line == "```", f"{document.name}, line {number}: a block begins inside another"
            yield Block(fence.removeprefix("```"), start, "\n".join(code) + "\n")
            fence = ""
    assert not fence, f"{document.name}, line {start - 1}: this block does not end"


def is_install(block: Block) -> bool:
    return block.language == "bash" and all(re.match(INSTALLS, line) for line in block.text.splitlines())


# Reads blocks from standard input; those of Python share one namespace, and tracebacks have the document's lines.
RUNNER = """
import json, subprocess, sys
document, blocks = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
for language, line, text in blocks:
    print(f"--- {document}, line {line}", flush=True)
    if language == "python":
        exec(compile("\\n" * (line - 1) + text, document, "exec"), namespace)
    else:
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdin=subprocess.DEVNULL)
"""


@pytest.mark.native
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_code_runs_as_it_stands(document: Path, tmp_path: Path) -> None:
    found = list(blocks(document))
    assert {block.language for block in found} <= RUN | SHOWN
    code = [block for block in found if block.language in RUN and not is_install(block)]
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", RUNNER],
        input=json.dumps([document.name, code]),
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]


def test_ci_runs_the_two_commands_that_install() -> None:
    installs = [block.text.splitlines() for block in blocks(REPOSITORY / "README.md") if is_install(block)]
    assert [len(lines) for lines in installs] == [1, 1]
    assert not any(is_install(block) for document in DOCUMENTS[1:] for block in blocks(document))
    assert f'grep -E "{INSTALLS}" README.md' in (REPOSITORY / ".ci" / "run").read_text()


# ---- links ----------------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """Headings in the form that GitHub gives them."""
    headings = re.findall(r"^#+ +(.+)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{document.name}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{document.name}: {target} is no heading"
        if text.startswith("test_"):
            assert f"def {text}(" in file.read_text(), f"{document.name}: {path} has no {text}"


# ---- what is made from the core -------------------------------------------------------------------------------------


@pytest.fixture
def options_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options_table", REPOSITORY / "docs" / "options_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_the_cores(options_table: ModuleType) -> None:
    text = GENERATION.read_text()
    assert options_table.with_tables(text) == text, "run python docs/options_table.py"
    changed = text.replace("from 0.0001 to 10000", "from 0 to 1", 1)
    assert changed != text == options_table.with_tables(changed)


def test_every_option_has_its_formula_once() -> None:
    section = re.search(r"^## Formulas\n(.*?)^## ", GENERATION.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert section
    rows = [line.split(" | ") for line in section[1].splitlines() if line.startswith("| ") and "`" in line]
    # The first table has a column for the step, the second begins with the option.
    named = [name for first, second, *_ in rows for name in re.findall(r"`(\w+)`", first if "`" in first else second)]
    assert sorted(named) == sorted(option["name"] for option in demiurgic.options())
