"""Whether an ONNX graph is one: versions that are known, no circle, nothing out of nowhere.

Cheap enough for every publish, and independent of any engine: an engine may still refuse the
operators.  Reads no weights beside the graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import onnx
from onnx import TensorProto

NODES_MAX: Final = 1_000_000  # of the graph and all that is in it
DEFAULT_DOMAINS: Final = frozenset({"", "ai.onnx"})

# In raw form, by element type; those below a byte and texts are left out.
BYTES_OF: Final[Mapping[int, int]] = {
    TensorProto.BOOL: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.UINT16: 2,
    TensorProto.INT16: 2,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.UINT32: 4,
    TensorProto.INT32: 4,
    TensorProto.FLOAT: 4,
    TensorProto.UINT64: 8,
    TensorProto.INT64: 8,
    TensorProto.DOUBLE: 8,
}


class BadModel(ValueError):
    """The file is not a model that can be published; the text names the file and the value."""


def check_model(model: Any, file: str) -> None:
    """See that a model's graph, the branches in it and its functions can be run in some order.

    Args:
        model: a ModelProto.
        file: its name, for the error.

    Raises:
        BadModel: a version that is not known here; nodes or functions that need each other; a
            value that nothing gives, or two things give; weights that are not as large as their
            shape says; too many nodes.
    """
    _check_versions(model, file)
    _check_functions(model.functions, file)
    bodies = [model.graph, *model.functions]
    nodes = sum(1 for body in bodies for _ in all_nodes(body))
    if nodes > NODES_MAX:
        raise BadModel(f"{file}: {nodes} nodes; at most {NODES_MAX}")
    for body in bodies:
        _check_scope(body, frozenset(), file)


def all_nodes(body: Any) -> Iterator[Any]:
    """Yield every node of a graph or function, and of the branches in it."""
    for node in body.node:
        yield node
        for inner in bodies_of(node):
            yield from all_nodes(inner)


def bodies_of(node: Any) -> Iterator[Any]:
    """Yield the graphs that a node holds: branches, or the body of a loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def needs_of(node: Any) -> set[str]:
    """Return the names that a node takes from its scope, also those that its branches take."""
    needs = {name for name in node.input if name}
    for body in bodies_of(node):
        own = _given(body) | {name for inner in body.node for name in inner.output}
        taken = {value.name for value in body.output}
        taken = taken.union(*(needs_of(inner) for inner in body.node))
        needs |= taken - own
    return needs


def in_order(nodes: Sequence[Any], file: str) -> list[Any]:
    """Return nodes so that each follows those whose outputs it needs; else as they were.

    Raises:
        BadModel: some need each other, or two give the same value.
    """
    maker: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in filter(None, node.output):
            if maker.setdefault(name, index) != index:
                other = _called(nodes[maker[name]])
                raise BadModel(f"{file}: both {other} and {_called(node)} give {name!r:.80}")
    after = [{maker[name] for name in needs_of(node) if name in maker} for node in nodes]
    if all(max(first, default=-1) < index for index, first in enumerate(after)):
        return list(nodes)
    followers: list[list[int]] = [[] for _ in nodes]
    for index, first in enumerate(after):
        for before in first:
            followers[before].append(index)
    waits = [len(first) for first in after]
    order = [index for index, count in enumerate(waits) if not count]
    for index in order:  # grows meanwhile
        for follower in followers[index]:
            waits[follower] -= 1
            if not waits[follower]:
                order.append(follower)
    if len(order) < len(nodes):
        stuck = next(index for index, count in enumerate(waits) if count)
        raise BadModel(f"{file}: {_called(nodes[_in_circle(stuck, after, waits)])} needs itself")
    return [nodes[index] for index in order]


def _in_circle(index: int, after: Sequence[set[int]], waits: Sequence[int]) -> int:
    # Whoever waits for one that waits goes round in the end.
    seen: set[int] = set()
    while index not in seen:
        seen.add(index)
        index = min(before for before in after[index] if waits[before])
    return index


def _check_versions(model: Any, file: str) -> None:
    if model.ir_version > onnx.IR_VERSION:
        raise BadModel(
            f"{file}: IR version {model.ir_version} is newer than {onnx.IR_VERSION}, the newest "
            "known here; export it with an older one"
        )
    newest = onnx.defs.onnx_opset_version()
    versions = {o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS}
    if len(versions) > 1:
        raise BadModel(f"{file}: opset {min(versions)} and {max(versions)} at once")
    for version in versions:
        if not 1 <= version <= newest:
            raise BadModel(
                f"{file}: opset {version} is not one of 1 to {newest}, those known here; "
                "export it with one of them"
            )
    imported = {_domain(o.domain) for o in model.opset_import}
    for body in [model.graph, *model.functions]:
        here = imported | {_domain(o.domain) for o in getattr(body, "opset_import", ())}
        for node in all_nodes(body):
            if _domain(node.domain) not in here:
                where = f"the domain {node.domain!r:.80}" if node.domain else "ONNX itself"
                raise BadModel(f"{file}: {_called(node)} is of {where}, which has no opset")


def _domain(name: str) -> str:
    return "" if name in DEFAULT_DOMAINS else name


def _check_functions(functions: Sequence[Any], file: str) -> None:
    """Refuse functions that call each other in a circle: they never end."""
    calls = {
        (_domain(f.domain), f.name): {(_domain(n.domain), n.op_type) for n in all_nodes(f)}
        for f in functions
    }
    while ends := [name for name, called in calls.items() if not called & calls.keys()]:
        for name in ends:
            del calls[name]
    if calls:
        names = ", ".join(sorted(repr(name) for _, name in calls))
        raise BadModel(f"{file}: functions call each other in a circle: {names:.200}")


def _check_scope(body: Any, outer: frozenset[str], file: str) -> None:
    """Check a graph or function, and the branches in it.

    Args:
        body: GraphProto or FunctionProto.
        outer: the names that are visible from around it.
    """
    for tensor in getattr(body, "initializer", ()):
        _check_size(tensor, file)
    order = in_order(body.node, file)
    visible = outer | _given(body)
    visible |= {name for node in order for name in node.output}
    for node in order:
        for name in needs_of(node):
            if name not in visible:
                raise BadModel(f"{file}: {_called(node)} needs {name!r:.80}, which nothing gives")
        for inner in bodies_of(node):
            _check_scope(inner, visible, file)
    for value in body.output:
        name = value if isinstance(value, str) else value.name
        if name not in visible:
            raise BadModel(f"{file}: nothing gives the output {name!r:.80}")


def _given(body: Any) -> frozenset[str]:
    inputs = (value if isinstance(value, str) else value.name for value in body.input)
    weights = (tensor.name for tensor in getattr(body, "initializer", ()))
    sparse = (tensor.values.name for tensor in getattr(body, "sparse_initializer", ()))
    return frozenset((*inputs, *weights, *sparse))


def _check_size(tensor: Any, file: str) -> None:
    size = BYTES_OF.get(tensor.data_type)
    if not tensor.raw_data or size is None:
        return
    if min(tensor.dims, default=1) < 0 or math.prod(tensor.dims) * size != len(tensor.raw_data):
        raise BadModel(
            f"{file}: weights {tensor.name!r:.80} have {len(tensor.raw_data)} bytes, which is not "
            f"what their shape {list(tensor.dims)!s:.80} takes"
        )


def _called(node: Any) -> str:
    return (
        f"{node.op_type!s:.40} {node.name!r:.80}"
        if node.name
        else f"a nameless {node.op_type!s:.40}"
    )
