"""The stub says what the compiled module has: names, kinds, parameters, defaults and types, nothing more or less.

pybind11 writes each signature into the first line of a docstring. That line is Python: syntax is compared with syntax.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import demiurgic
from demiurgic import _C

STUB = Path(demiurgic.__file__).with_name("_C.pyi").read_text()

# The other special methods are object's own, pickle's or pybind11's.
SPECIAL = {"__init__", "__eq__", "__hash__"}


class Member(NamedTuple):
    kind: str  # function | method | classmethod | staticmethod | attribute | property (read-only)
    signature: ast.FunctionDef  # an attribute has no parameters and returns its type


def is_compared(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


def parsed(signature: str) -> ast.FunctionDef:
    (function,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return function


def members_of_stub(body: list[ast.stmt], owner: str = "") -> Iterator[tuple[str, Member]]:
    for node in body:
        match node:
            case ast.ClassDef(name=name) if is_compared(name):
                yield name, Member("class", parsed("_()"))
                yield from members_of_stub(node.body, f"{name}.")
            case ast.FunctionDef(name=name) if is_compared(name):
                decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                yield owner + name, Member(*decorators or ["method" if owner else "function"], node)
            case ast.AnnAssign(target=ast.Name(id=name)) if is_compared(name):
                yield owner + name, Member("attribute", parsed(f"_() -> {ast.unparse(node.annotation)}"))


def members_of_module(module: ModuleType | type, owner: str = "") -> Iterator[tuple[str, Member]]:
    for name, value in vars(module).items():
        if not is_compared(name):
            continue
        match value:
            case type():
                yield name, Member("class", parsed("_()"))
                yield from members_of_module(value, f"{name}.")
            case property():
                getter = from_docstring(value.fget, "_")
                getter.args.args = []  # the object, under another name than self
                yield owner + name, Member("attribute" if value.fset else "property", getter)
            case classmethod() | staticmethod():
                yield owner + name, Member(type(value).__name__, from_docstring(value.__func__))
            case None:
                yield owner + name, Member("attribute", parsed("_() -> ClassVar[None]"))
            case _ if value is not object.__init__ and type(value).__name__ != "wrapper_descriptor":  # cannot be made
                yield owner + name, Member("method" if owner else "function", from_docstring(value))


def from_docstring(function: Any, name: str = "") -> ast.FunctionDef:
    return parsed(name + function.__doc__.splitlines()[0])


class Parameter(NamedTuple):
    name: str
    is_keyword_only: bool
    default: str | None
    type: str


def parameters(function: ast.FunctionDef) -> list[Parameter]:
    """Without self and cls; `**kwargs` is named `**` whatever its name."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    optional = [None] * (len(positional) - len(given.defaults)) + given.defaults
    entries = [(a, False, default) for a, default in zip(positional, optional, strict=True)]
    entries += [(a, True, default) for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    found = [
        Parameter(a.arg, is_keyword_only, default and ast.unparse(default), type_of(a.annotation))
        for a, is_keyword_only, default in entries
        if a.arg not in ("self", "cls")
    ]
    return found + [Parameter("**", True, None, "object")] * (given.kwarg is not None)


def type_of(annotation: ast.expr | None) -> str:
    text = ast.unparse(annotation) if annotation else "object"
    text = re.sub(r"\b(typing|collections\.abc|demiurgic\._C|torch)\.", "", text)
    return re.sub(r"Supports(Int|Float)( \| SupportsIndex)?", lambda match: match[1].lower(), text)


def fits(stub: str, module: str) -> bool:
    """pybind11 does not know what is in a py::object, a list or a dict."""
    return stub == module or module == "object" or (module in ("list", "dict") and stub.startswith(f"{module}["))


def differences(stub: str, module: ModuleType) -> list[str]:
    said, there = dict(members_of_stub(ast.parse(stub).body)), dict(members_of_module(module))
    found = [f"{name} is not in the stub" for name in there.keys() - said.keys()]
    found += [f"{name} is not in the module" for name in said.keys() - there.keys()]
    for name in said.keys() & there.keys():
        found += [f"{name}: {difference}" for difference in differences_of(said[name], there[name])]
    return found


def differences_of(stub: Member, module: Member) -> Iterator[str]:
    if stub.kind != module.kind:
        yield f"a {stub.kind} in the stub, a {module.kind} in the module"
    for said, there in zip_longest(parameters(stub.signature), parameters(module.signature)):
        if said is None or there is None:
            yield f"parameter {(said or there).name} is in the {'module' if said is None else 'stub'} only"
        elif re.fullmatch(r"arg\d+", there.name):
            continue  # an operator's operand, which has no name, and may be anything
        elif said[:3] != there[:3]:
            yield f"parameter {said[:3]} in the stub, {there[:3]} in the module"
        elif said.name != "**" and not fits(said.type, there.type):
            yield f"parameter {said.name} is {said.type} in the stub, {there.type} in the module"
    said_type, there_type = type_of(stub.signature.returns), type_of(module.signature.returns)
    if not fits(said_type, there_type):
        yield f"{said_type} in the stub, {there_type} in the module"


def fields(stub: str, name: str) -> dict[str, str]:
    """The annotated names of a class and, for the dictionaries of keywords, of the class that it extends."""
    classes = {node.name: node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef)}
    own = [node for node in classes[name].body if isinstance(node, ast.AnnAssign)]
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
    inherited = [fields(stub, base) for base in bases]
    types = {ast.unparse(node.target): ast.unparse(node.annotation) for node in own}
    return {key: kind for more in [*inherited, types] for key, kind in more.items() if key not in SPECIAL}


def keywords(stub: str, function: ast.FunctionDef) -> dict[str, str]:
    """What can be given by name and its type, `**options: Unpack[...]` opened."""
    named = {p.name: p.type for p in parameters(function) if p.name != "**"}
    assert function.args.kwarg and function.args.kwarg.annotation
    unpacked = re.fullmatch(r"Unpack\[(\w+)\]", ast.unparse(function.args.kwarg.annotation))
    assert unpacked
    return named | fields(stub, unpacked[1])


def option_differences(stub: str) -> list[str]:
    """Where the stub does not have every option of the table, with its type, as attribute and as keyword."""
    table = {option["name"]: option["type"] for option in _C.options()}
    methods = dict(members_of_stub(ast.parse(stub).body))
    takers = ["__init__", "replace", *_C.presets()]
    found = {"attributes": fields(stub, "GenerationConfig")}
    found |= {name: keywords(stub, methods[f"GenerationConfig.{name}"].signature) for name in takers}
    return [
        f"{place}: {name} is {types.get(name)} in the stub, {table.get(name)} in the table"
        for place, types in found.items()
        for name in types.keys() | table.keys()
        if types.get(name) != table.get(name)
    ]


def test_the_stub_says_what_the_module_has():
    assert differences(STUB, _C) == []


def test_every_option_is_typed_as_the_table_says():
    assert option_differences(STUB) == []


# text of the stub, what is put in its place, the difference that is found
PLANTED = [
    ("    def cancel(self)", "    def _cancel(self)", "Call.cancel is not in the stub"),
    ("def presets()", "def preset_names()", "presets is not in the stub"),
    ("def presets()", "def preset_names()", "preset_names is not in the module"),
    ("class Engine:", "class Motor:", "Engine is not in the stub"),
    ("    seeds: list[int]\n", "", "Request.seeds is not in the stub"),
    ("    seeds: list[int]\n", "    seeds: int\n", "Request.seeds: int in the stub, list[int] in the module"),
    ("    @property\n    def num_rows", "    def num_rows", "Call.num_rows: a method in the stub, a property"),
    ("    @staticmethod\n    def from_json(", "    def from_json(self, ", "from_json: a method in the stub, a static"),
    ("def greedy(cls", "def greedily(cls", "GenerationConfig.greedy is not in the stub"),
    ("__hash__: ClassVar[None]", "_: ClassVar[None]", "GenerationConfig.__hash__ is not in the stub"),
    ("(seed: int, i: int)", "(seed: int, index: int)", "derive_seed: parameter ('index', False, None) in the stub"),
    ("(seed: int, i: int)", "(i: int, seed: int)", "derive_seed: parameter ('i', False, None) in the stub"),
    ("(seed: int, i: int)", "(seed: int, i: str)", "parameter i is str in the stub, int in the module"),
    ("(seed: int, i: int)", "(seed: int)", "derive_seed: parameter i is in the module only"),
    ("(seed: int, i: int)", "(seed: int, i: int, j: int)", "derive_seed: parameter j is in the stub only"),
    ("start: int = 0", "start: int = 1", "('start', False, '1') in the stub, ('start', False, '0') in"),
    ("start: int = 0", "start: int", "parameter ('start', False, None) in the stub, ('start', False, '0')"),
    ("        *,\n        num_heads", "        num_heads", "LayerConfig.__init__: parameter ('num_heads', False"),
    ("def advance(self) -> bool", "def advance(self) -> int", "Call.advance: int in the stub, bool in the module"),
    ("cache_bytes: int | None", "cache_bytes: int", "cache_bytes is int in the stub, int | None in the module"),
    ("config: ModelConfig", "config: LayerConfig", "config is LayerConfig in the stub, ModelConfig in the"),
    ("-> dict[str, float]", "-> list[float]", "Call.timings: list[float] in the stub, dict in the module"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "replaced", "difference"), PLANTED)
def test_a_planted_difference_is_found(text, replaced, difference):
    assert text in STUB
    assert any(difference in found for found in differences(STUB.replace(text, replaced), _C))


# the same for the options
@pytest.mark.parametrize(
    ("text", "replaced", "difference"),
    [
        ("    min_p: float | None\n", "", "attributes: min_p is None in the stub, float | None in the table"),
        ("    min_p: float | None\n", "", "balanced_code: min_p is None in the stub, float | None in the table"),
        ("    top_k: int | None\n", "    top_k: int\n", "attributes: top_k is int in the stub, int | None in"),
        ("    top_k: int | None\n", "    top_k: int\n", "__init__: top_k is int in the stub, int | None in the table"),
        ("    use_cache: bool\n", "    use_cache: bool\n    beams: int\n", "replace: beams is int in the stub, None"),
        ("replace(self, **options: Unpack[_Options])", "replace(self, **options: Unpack[_AllButMaxNewTokens])",
         "replace: max_new_tokens is None in the stub, int | None in the table"),
        ("greedy(cls, max_new_tokens: int | None", "greedy(cls, max_new_tokens: int", "greedy: max_new_tokens is int"),
    ],
)  # fmt: skip
def test_a_planted_difference_of_the_options_is_found(text, replaced, difference):
    assert text in STUB
    assert any(found.startswith(difference) for found in option_differences(STUB.replace(text, replaced)))
