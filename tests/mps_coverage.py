"""Would recorded operations run on MPS? Told on any machine by the table of kernels that torch is generated from.

`record` takes down every operation of ATen that a function calls on the CPU, as trees: an operation may be a composite,
whose kernel is the same on every device and only calls others. `problems` walks the trees from the top. Where
native_functions.yaml has a kernel for MPS, that one would run, and what the CPU's kernel called does not matter; a
composite is followed to what it called; everything else is missing. That a kernel exists is all that is told: not for
which shapes it works, nor that its numbers are right.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchgen
import yaml
from torch.profiler import ExecutionTraceObserver

# Composites that call nothing through the dispatcher and yet do work, with what they do for a tensor on MPS.
DIRECT = {"copy_": "ATen/native/Copy.cpp calls mps_copy_ where one of the two tensors is on MPS"}

# The dtypes that getMPSDataType (ATen/native/mps/OperationUtils.mm) translates, of those that we might use; it refuses
# float64. As the recorder spells them.
DTYPES = {
    *("float", "c10::Half", "c10::BFloat16", "bool"),
    *("long int", "int", "short int", "signed char", "unsigned char"),
}

COMPOSITE = {"CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd"}


# Operations that give the host a number, or a tensor whose shape depends on numbers: the host waits for all that the
# device was asked to do.
WAITING = {
    *("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "masked_select"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"),
    *("repeat_interleave", "_copy_from_and_resize", "_to_cpu", "cpu"),
}


@dataclass
class Tensor:
    dtype: str
    storage: int
    sizes: tuple[int, ...]


@dataclass
class Call:
    """A call of an operation, and the calls that its kernel on the CPU made in turn."""

    name: str  # with its overload, as in native_functions.yaml: add.Tensor
    schema: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    arguments: list[Any]  # as the recorder writes them, in the order of the schema
    children: list[Call] = field(default_factory=list)

    @property
    def is_view(self) -> bool:
        """Whether it did nothing but look at its input differently: no element was read or written."""
        storages = {tensor.storage for tensor in self.inputs}
        mutates = "!" in self.schema
        return bool(self.outputs) and not mutates and all(tensor.storage in storages for tensor in self.outputs)


def record(function: Callable[[], object]) -> list[Call]:
    """The outermost operations that `function` calls, in C++ as in Python, in the order in which they end."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        observer = ExecutionTraceObserver().register_callback(str(file))
        observer.start()
        try:
            function()
        finally:
            observer.stop()
            observer.unregister_callback()
        nodes = json.loads(file.read_text())["nodes"]
    calls = {node["id"]: call_of(node) for node in nodes}  # None: no operation
    parents = {node["id"]: node["ctrl_deps"] for node in nodes}

    def caller(node: int) -> Call | None:
        parent = parents[node]
        while calls[parent] is None and parents[parent] != parent:  # the thread, the process, marks of the profiler
            parent = parents[parent]
        return calls[parent]

    outermost = []
    for node, call in calls.items():
        if call is not None:
            outer = caller(node)
            (outer.children if outer else outermost).append(call)
    return outermost


def call_of(node: dict[str, Any]) -> Call | None:
    schema = next(attribute["value"] for attribute in node["attrs"] if attribute["name"] == "op_schema")
    if not schema:
        return None
    name = schema.split("(")[0].removeprefix("aten::")
    inputs = node["inputs"]
    return Call(name, schema, list(tensors(inputs)), list(tensors(node["outputs"])), inputs["values"])


def tensors(arguments: dict[str, list[Any]]) -> Iterator[Tensor]:
    """Those among the arguments, lists of tensors opened."""
    for kind, value, shape in zip(arguments["types"], arguments["values"], arguments["shapes"], strict=True):
        dtypes = re.findall(r"Tensor\((.+?)\)", kind)
        entries = (
            zip(value, shape, strict=True)
            if kind.startswith("GenericList[") and "Tensor(" in kind
            else [(value, shape)]
        )
        given = [entry for entry in entries if entry[0] != "<None>"]
        for dtype, (entry, sizes) in zip(dtypes, given, strict=False):
            if not dtype.startswith("nullptr"):  # an undefined tensor: no bias
                yield Tensor(dtype, storage=entry[1], sizes=tuple(sizes))


class KernelTable:
    """native_functions.yaml, which torch generates its kernels' registrations from, as torchgen packages it."""

    def __init__(self) -> None:
        file = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
        entries = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.entries = {entry["func"].split("(")[0]: entry for entry in entries}
        # Variants that torchgen writes itself, from the operation that they stand under.
        self.generated = {name.strip() for entry in entries for name in entry.get("autogen", "").split(",")}

    def keys(self, name: str) -> set[str]:
        """Dispatch keys that `name` has a kernel for."""
        dispatch = self.entries[name].get("dispatch", {})
        return {key.strip() for keys in dispatch for key in keys.split(",")}

    def has_mps(self, name: str) -> bool:
        if name not in self.entries:
            return False
        delegate = self.entries[name].get("structured_delegate")  # the out variant that has the kernels
        return "MPS" in self.keys(name) or (delegate is not None and "MPS" in self.keys(delegate))

    def is_composite(self, name: str) -> bool:
        if name not in self.entries:
            return name in self.generated
        entry = self.entries[name]
        return bool(self.keys(name) & COMPOSITE) or not ("dispatch" in entry or "structured_delegate" in entry)


def problems(calls: list[Call], table: KernelTable, within: str = "") -> set[str]:
    """One sentence for each operation that would not run on MPS, and for each dtype that MPS lacks."""
    found = set()
    for call in calls:
        path = f"{within}{call.name}"
        found |= {f"{path} has a tensor of {dtype}, which MPS lacks" for dtype in lacking_dtypes(call)}
        if table.has_mps(call.name):
            continue
        if not table.is_composite(call.name):
            found.add(f"{path} has no kernel for MPS")
        elif call.children:
            found |= problems(call.children, table, f"{path} > ")
        elif not call.is_view and call.name not in DIRECT:
            found.add(f"{path} is a composite that calls nothing; find out what it does on MPS, and name it in DIRECT")
    return found


def lacking_dtypes(call: Call) -> set[str]:
    # A number in C++ or Python, as in `x * 0.5`, is passed as a float64 tensor of no dimensions on the CPU; it never is
    # the result of an operation.
    numbers = [tensor for tensor in call.inputs if not tensor.sizes and tensor.dtype == "double"]
    return {tensor.dtype for tensor in call.inputs + call.outputs if tensor not in numbers} - DTYPES


def transfers(calls: list[Call]) -> list[Call]:
    """Copies from the host or to it, as C++ asks for them: `tensor.to(device)`, which is free on the CPU."""
    return [call for call in calls if call.name == "to.dtype_layout"]


def is_waited_for(transfer: Call) -> bool:
    """Whether the host waits for one of `transfers`, and so for all that the device was asked to do before."""
    names = [argument.name for argument in torch._C.parse_schema(transfer.schema).arguments]
    return not dict(zip(names, transfer.arguments, strict=True))["non_blocking"]


def waits(calls: list[Call], table: KernelTable) -> list[str]:
    """What makes the host wait, copies aside."""
    found = []
    for call in calls:
        indexes = call.name.startswith(("index.", "index_put", "_index_put"))
        by_mask = indexes and any(tensor.dtype == "bool" for tensor in call.inputs[1:])
        if by_mask or call.name.split(".")[0] in WAITING:
            found.append(call.name)
        elif not table.has_mps(call.name):
            found += waits(call.children, table)
    return found


def names(calls: list[Call]) -> set[str]:
    """Of all calls, those within others included."""
    return {name for call in calls for name in {call.name} | names(call.children)}
