"""What a `torch.export` archive says of itself: inputs, outputs, whether it draws random numbers.

Loads no torch: all of it stands in the archive's JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from registry_sync.documents import TensorSpec
from registry_sync.onnx_signature import BadModel
from registry_sync.pt2_archive import Pt2Archive
from registry_sync.pt2_operators import is_random, nodes_of, written
from registry_sync.pt2_rules import leaves

FORMAT: Final = "torch-export"

# By the number in torch's schema of archives (`ScalarType`).
DATATYPE_OF: Final[Mapping[int, str]] = {
    1: "UINT8",
    2: "INT8",
    3: "INT16",
    4: "INT32",
    5: "INT64",
    6: "FP16",
    7: "FP32",
    8: "FP64",
    12: "BOOL",
    13: "BF16",
    28: "UINT16",
    34: "UINT32",
    35: "UINT64",
}


@dataclass(frozen=True, slots=True)
class Pt2Signature:
    """What publishing and loading need to know of an archive."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    deterministic: bool  # no random operator
    writes_inputs: bool  # the caller's arrays must be copied before
    has_batch_axis: bool  # the first axis of every input and output is one and the same symbol
    rows_max: int | None  # what the export allows on that axis; None: any
    # What the flat inputs and outputs of the program are: a name, or a constant that is no tensor.
    flat_inputs: tuple[str | Constant, ...]
    flat_outputs: tuple[str | None, ...]  # None: not a tensor, and left out
    # Of each input: every size, or the expression that it is; those of one text are equal.
    sizes: Mapping[str, tuple[int | str, ...]]
    ranges: Mapping[str, tuple[int, int | None]]  # of each expression that is a symbol


@dataclass(frozen=True, slots=True)
class Constant:
    """An input that the export has made a constant; it must be given all the same."""

    value: bool | int | float | str | None


def publish_archive(path: Path, target: Path) -> Pt2Signature:
    """Check an archive, write it anew without pickles (see `pt2_archive`), say its signature.

    Args:
        path: what `torch.export.save` wrote.
        target: a file that does not exist.

    Raises:
        BadModel: it is not one, or it cannot be served; the text says why, and the way out.
        OSError: `target` cannot be written.
    """
    with Pt2Archive(path) as archive:
        graph = archive.check(is_published=False)
        signature = _signature(graph, path.name)
        archive.write_clean(target, graph)
    return signature


def read_published(path: Path) -> Pt2Signature:
    """Check an archive that is about to be loaded; raises `BadModel`."""
    with Pt2Archive(path) as archive:
        return _signature(archive.check(is_published=True), path.name)


def _signature(plain: Any, file: str) -> Pt2Signature:
    try:
        return _Reader(plain, file).signature()
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
        raise BadModel(f"{file}: its graph cannot be read: {error!r}") from None


class _Reader:
    def __init__(self, plain: Any, file: str) -> None:
        self._module = plain["graph_module"]
        self._graph = self._module["graph"]
        self._values = self._graph["tensor_values"]
        self._ranges = plain["range_constraints"]
        self._file = file
        call = next(one for one in self._module["module_call_graph"] if one["fqn"] == "")
        self._call = call["signature"]

    def signature(self) -> Pt2Signature:
        flat_inputs = self._flat_inputs()
        flat_outputs = self._flat_outputs()
        inputs = [one for one in flat_inputs if not isinstance(one, Constant)]
        outputs = [one for one in flat_outputs if one is not None]
        if not outputs:
            raise BadModel(f"{self._file}: gives no tensor")
        firsts = {self._first(value) for _, value in (*inputs, *outputs)}
        nodes = nodes_of(self._graph)
        symbol = firsts.pop() if len(firsts) == 1 and inputs else None
        least, most = self._range(symbol)
        return Pt2Signature(
            inputs=tuple(self._spec(name, value, "input") for name, value in inputs),
            outputs=tuple(self._spec(name, value, "output") for name, value in outputs),
            deterministic=not any(map(is_random, nodes)),
            writes_inputs=self._writes_inputs(nodes),
            # torch writes 2 where it means any: 0 and 1 are special to it while it traces.
            has_batch_axis=symbol is not None and least <= 2,
            rows_max=most,
            flat_inputs=tuple(one if isinstance(one, Constant) else one[0] for one in flat_inputs),
            flat_outputs=tuple(None if one is None else one[0] for one in flat_outputs),
            sizes={name: self._sizes(value) for name, value in inputs},
            ranges={symbol: self._range(symbol) for symbol in self._ranges},
        )

    def _writes_inputs(self, nodes: Sequence[Any]) -> bool:
        """Tell whether the caller's tensors are written to; refuse a model with a state."""
        callers, own = set(), set()
        for spec in self._module["signature"]["input_specs"]:
            (kind, given) = next(iter(spec.items()))
            if kind == "user_input":
                callers.add(given["arg"]["as_tensor"]["name"])
            elif kind != "constant_input":
                own.add(given["arg"]["name"])
        if written(nodes, own):
            raise self._stateful("its own state")
        return written(nodes, callers)

    def _stateful(self, what: str) -> BadModel:
        return BadModel(
            f"{self._file}: the model changes {what}, so its answers would depend on the calls "
            "before; export it without that (`.eval()`)"
        )

    def _flat_inputs(self) -> list[tuple[str, str] | Constant]:
        """Return each user input as its name and its value in the graph, in the call's order."""
        paths = self._input_names()
        found: list[tuple[str, str] | Constant] = []
        for spec in self._module["signature"]["input_specs"]:
            kind = next(iter(spec))
            if kind == "constant_input":
                found.append(Constant(next(iter(spec[kind]["value"].values()))))
                if "as_none" in spec[kind]["value"]:
                    found[-1] = Constant(None)
            elif kind == "user_input":
                arg = spec[kind]["arg"]
                if "as_tensor" not in arg:
                    raise BadModel(
                        f"{self._file}: an input is no tensor ({next(iter(arg))}); export it as a "
                        "constant or as a tensor"
                    )
                found.append((paths[len(found)], arg["as_tensor"]["name"]))
            elif kind not in ("parameter", "buffer", "tensor_constant"):
                raise BadModel(f"{self._file}: an input is a {kind}, which cannot be served")
        if len(found) != len(paths):
            raise BadModel(f"{self._file}: {len(found)} inputs for {len(paths)} places in the call")
        return found

    def _input_names(self) -> list[str]:
        names = self._call.get("forward_arg_names") or []
        found = []
        for path in leaves(self._call["in_spec"]):
            place, *rest = path  # 0: positional, 1: by keyword
            if place == 0:
                index = int(rest[0])
                rest[0] = names[index] if index < len(names) else f"input_{index}"
            found.append(".".join(map(str, rest)))
        return found

    def _flat_outputs(self) -> list[tuple[str, str] | None]:
        paths = leaves(self._call["out_spec"])
        found: list[tuple[str, str] | None] = []
        for spec in self._module["signature"]["output_specs"]:
            kind = next(iter(spec))
            if kind in ("buffer_mutation", "parameter_mutation", "user_input_mutation"):
                raise self._stateful(
                    "its inputs" if kind == "user_input_mutation" else "its own state"
                )
            if kind != "user_output":
                raise BadModel(f"{self._file}: an output is a {kind}, which cannot be served")
            arg = spec[kind]["arg"]
            path = paths[len(found)]
            if "as_tensor" in arg:
                found.append((_output_name(path), arg["as_tensor"]["name"]))
            elif "as_none" in arg:
                found.append(None)
            else:
                raise BadModel(
                    f"{self._file}: output {_output_name(path)!r:.80} is no tensor; wrap it so "
                    "that it gives tensors only"
                )
        return found

    def _spec(self, name: str, value: str, kind: str) -> TensorSpec:
        meta = self._values[value]
        datatype = DATATYPE_OF.get(meta["dtype"])
        if datatype is None:
            raise BadModel(
                f"{self._file}: {kind} {name!r:.80} has torch's type number {meta['dtype']}; "
                f"allowed are {', '.join(DATATYPE_OF.values())}"
            )
        return TensorSpec(name, datatype, tuple(size.get("as_int", -1) for size in meta["sizes"]))

    def _first(self, value: str) -> str | None:
        """Return the symbol of a tensor's first axis; None if it has none or another thing."""
        sizes = self._sizes(value)
        return (
            sizes[0] if sizes and isinstance(sizes[0], str) and sizes[0] in self._ranges else None
        )

    def _sizes(self, value: str) -> tuple[int | str, ...]:
        return tuple(
            size["as_int"] if "as_int" in size else _bare(size["as_expr"]["expr_str"])
            for size in self._values[value]["sizes"]
        )

    def _range(self, symbol: str | None) -> tuple[int, int | None]:
        if symbol is None:
            return 0, None
        found = self._ranges[symbol]
        return found.get("min_val") or 0, found.get("max_val")


def _bare(expression: str) -> str:
    """Return the name of what is a symbol and nothing else; before torch 2.7 it stood alone."""
    found = re.fullmatch(r"Symbol\('(\w+)'[^()]*\)", expression)
    return found[1] if found else expression


def _output_name(path: Sequence[str | int]) -> str:
    name = ".".join(map(str, path))
    return f"output_{name}" if path and isinstance(path[0], int) else name or "output"
