"""What an ONNX file says of itself: signature, random operators, weights kept beside it.

Only the graph is read: neither weights in other files nor what the graph means.  Whether an
engine can run the model is found out by the engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from registry_sync.documents import TensorSpec
from registry_sync.onnx_checks import BadModel, check_model

__all__ = ["BadModel", "OnnxSignature", "read_signature"]

GRAPH_BYTES_MAX: Final = 2 * 1024**3 - 1  # protobuf's own limit on a message
EXTERNAL_FIELDS: Final = frozenset({"location", "offset", "length", "checksum"})

DATATYPE_OF: Final[Mapping[int, str]] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "BYTES",
}

# In any domain.  A `seed` attribute does not help: the generator goes on from call to call.
RANDOM_OPERATORS: Final = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Sampling",  # com.microsoft, draws tokens
    }
)


@dataclass(frozen=True, slots=True)
class OnnxSignature:
    """What publishing needs to know of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    deterministic: bool  # no random operator anywhere, also not in a branch or a function
    external: tuple[str, ...]  # files with weights, relative to the graph's folder, sorted
    has_batch_axis: bool  # the first axis of every input and output is one and the same symbol


def read_signature(path: Path, beside: Mapping[str, int]) -> OnnxSignature:
    """Read an ONNX file's signature and check where its weights lie.

    A symbolic or unknown size becomes -1.  An input must say its rank.  An output need not: many
    exporters leave it out, and it becomes ``[-1]``, which promises nothing but an array.

    Args:
        path: the graph.
        beside: every file that will be published with it, by its path relative to the graph's
            folder, with its size in bytes.

    Raises:
        BadModel: the file cannot be parsed; its graph is none (see `onnx_checks.check_model`); a
            tensor has a type the protocol does not know; weights lie in a file that is not in
            `beside`, or beyond its end.
    """
    model = _load(path)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    # Before IR version 4, weights had to be listed among the inputs as well.
    inputs = [value for value in graph.input if value.name not in constants]
    bodies = [graph, *model.functions]
    found = OnnxSignature(
        inputs=tuple(_tensor(value, "input", path.name) for value in inputs),
        outputs=tuple(_tensor(value, "output", path.name) for value in graph.output),
        deterministic=not any(_is_random(body, {}) for body in bodies),
        external=_external_files(bodies, beside, path.name),
        has_batch_axis=_has_batch_axis([*inputs, *graph.output]) and bool(inputs),
    )
    check_model(model, path.name)
    return found


def _has_batch_axis(values: Sequence[Any]) -> bool:
    """Whether all tensors begin with a symbolic axis that nothing says to be another one.

    An axis without a name is believed; two names are two axes, and joining calls along them would
    mix what belongs to different callers.
    """
    names = set()
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if not dims or _size(dims[0]) != -1:
            return False
        names.add(dims[0].dim_param)
    return len(names - {""}) <= 1


def _load(path: Path) -> Any:
    bytes_ = path.stat().st_size
    if bytes_ > GRAPH_BYTES_MAX:
        raise BadModel(
            f"{path.name}: {bytes_} bytes; a graph has at most {GRAPH_BYTES_MAX}: "
            "save its weights as external data and publish the folder"
        )
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise BadModel(f"{path.name}: not an ONNX file: {error}") from None
    # Protobuf takes many a text for a message with nothing in it that it knows.
    if not model.graph.output:
        raise BadModel(f"{path.name}: not an ONNX file, or one without outputs")
    return model


def _tensor(value: Any, kind: str, file: str) -> TensorSpec:
    where = f"{file}: {kind} {value.name!r:.80}"
    name = _text(value.name, where)
    if value.type.WhichOneof("value") != "tensor_type":
        held = value.type.WhichOneof("value") or "nothing"
        raise BadModel(f"{where} is a {held.removesuffix('_type')}; only tensors can be served")
    tensor = value.type.tensor_type
    datatype = DATATYPE_OF.get(tensor.elem_type)
    if datatype is None:
        known = TensorProto.DataType.items()
        word = {number: word for word, number in known}.get(tensor.elem_type, tensor.elem_type)
        raise BadModel(f"{where} holds {word}; allowed are {', '.join(DATATYPE_OF.values())}")
    if tensor.HasField("shape"):
        shape = tuple(_size(dim) for dim in tensor.shape.dim)
    elif kind == "output":
        shape = (-1,)
    else:
        raise BadModel(f"{where} has no rank; export the model with a shape for every input")
    return TensorSpec(name, datatype, shape)


def _text(value: str | bytes, where: str) -> str:
    if isinstance(value, bytes):  # what protobuf hands out where a text is not UTF-8
        raise BadModel(f"{where}: {value!r:.80} is not UTF-8")
    return value


def _size(dim: Any) -> int:
    # Some exporters write a negative size for an unknown one.
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else -1


def _is_random(body: Any, outer: Mapping[str, Any]) -> bool:
    """Whether a graph or function draws random numbers, itself or in a branch of it.

    Args:
        body: GraphProto or FunctionProto.
        outer: the constant tensors that are visible from around it, by name.
    """
    constants = {**outer, **{t.name: t for t in getattr(body, "initializer", ())}}
    for node in body.node:
        if node.op_type == "Constant" and node.output:
            value = next((a for a in node.attribute if a.name == "value"), None)
            if value is not None:
                constants[node.output[0]] = value.t
    return any(
        node.op_type in RANDOM_OPERATORS
        or (node.op_type == "Dropout" and _may_train(node, constants))
        for node in body.node
    ) or any(
        _is_random(graph, constants)
        for attribute in _attributes(body)
        for graph in (attribute.g, *attribute.graphs)
    )


def _may_train(node: Any, constants: Mapping[str, Any]) -> bool:
    if len(node.input) < 3 or not node.input[2]:
        return False
    # Anything but a constant false is decided while it runs.
    flag = constants.get(node.input[2])
    if flag is None or flag.data_type != TensorProto.BOOL:
        return True
    values = [*flag.raw_data, *flag.int32_data]
    return not values or any(values)


def _external_files(bodies: Sequence[Any], beside: Mapping[str, int], file: str) -> tuple[str, ...]:
    found = set()
    for body in bodies:
        for tensor in _tensors(body):
            if tensor.data_location == TensorProto.EXTERNAL:
                found.add(_external_file(tensor, beside, f"{file}: weights {tensor.name!r:.80}"))
    return tuple(sorted(found))


def _tensors(body: Any) -> Iterator[Any]:
    yield from getattr(body, "initializer", ())
    for sparse in getattr(body, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for attribute in _attributes(body):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _attributes(body: Any) -> Iterator[Any]:
    yield from getattr(body, "attribute_proto", ())  # a function's defaults
    for node in body.node:
        yield from node.attribute


def _external_file(tensor: Any, beside: Mapping[str, int], where: str) -> str:
    """Return the file that holds a tensor's bytes, after checking that it may and does."""
    fields: dict[str, str] = {}
    for entry in tensor.external_data:
        # CVE-2026-34445: onnx set any name it found here as an attribute of its own object.
        if entry.key not in EXTERNAL_FIELDS or entry.key in fields:
            raise BadModel(f"{where} have an unknown or repeated field {entry.key!r:.80}")
        fields[entry.key] = _text(entry.value, where)
    location = fields.get("location", "")
    parts = location.split("/")
    if not location or location.startswith("/") or ".." in parts or "\\" in location:
        raise BadModel(f"{where} lie in {location!r:.200}; allowed is a file in the same folder")
    name = str(PurePosixPath(location))
    if name not in beside:
        raise BadModel(
            f"{where} lie in {location!r:.200}, which is not published with it: "
            "publish the folder that holds both"
        )
    offset, length = (fields.get(key, "0") for key in ("offset", "length"))
    if not all(re.fullmatch(r"[0-9]{1,18}", number) for number in (offset, length)):
        raise BadModel(f"{where} have offset {offset!r:.40} and length {length!r:.40}")
    if int(offset) + int(length) > beside[name]:
        raise BadModel(
            f"{where} reach to byte {int(offset) + int(length)} of {name}, "
            f"which has {beside[name]}: the file is not the one the graph was saved with"
        )
    return name
