"""The bodies of `infer`: Open Inference Protocol v2 as JSON, with the binary tensor extension.

    JSON body      {"id"?, "parameters"?, "inputs": [tensor, …], "outputs"?: [{"name", …}, …]}
    tensor         {"name", "shape", "datatype", "data"} or, for bytes behind the JSON,
                   {"name", "shape", "datatype", "parameters": {"binary_data_size": N}}
    binary body    JSON of Inference-Header-Content-Length bytes, then the raw tensors in order
    raw body       Inference-Header-Content-Length: 0; only the bytes of the single input

Every length is checked before something is made of it; a body that does not add up exactly is
refused.  Malformed is 400; well-formed but not this signature is 422.  Fields that are not known
are ignored, as Triton does; doubled keys are refused.  Does not decompress, and does not bound
the body as a whole: who reads it from the network does.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edge.body_cut import cut
from edge.body_json import check_keys, pack_data, read_json
from edge.body_parameters import read_class_count, read_flag, read_steering, relevant
from edge.body_render import render_infer
from edge.body_request import NOTHING, InferRequest, Parameter
from edge.body_signature import RANK_MAX, InputRule, Signature
from edge.errors import BadRequest, TooLarge, quote
from edge.tensors import LENGTH_BYTES, Tensor, element_ends, shape_text

__all__ = ["InferRequest", "Signature", "parse_infer", "render_infer"]

TENSORS_MAX = 1024
ID_BYTES_MAX = 1024
DIM_MAX = 2**31 - 1
PARAMETERS_MAX = 1024  # of a request, an input or an output

_Parameters = Annotated[dict[str, Parameter], Meta(max_length=PARAMETERS_MAX)] | None | UnsetType


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=DIM_MAX)], ...], Meta(max_length=RANK_MAX)]
    datatype: str
    data: msgspec.Raw | UnsetType = UNSET
    parameters: _Parameters = UNSET


class Output(msgspec.Struct, gc=False):
    """An output that is asked for."""

    name: str
    parameters: _Parameters = UNSET


class _Infer(msgspec.Struct, gc=False):
    inputs: Annotated[list[_Input], Meta(max_length=TENSORS_MAX)]
    id: str | UnsetType | None = UNSET
    parameters: _Parameters = UNSET
    outputs: Annotated[list[Output], Meta(max_length=TENSORS_MAX)] | UnsetType | None = UNSET


_decoder = msgspec.json.Decoder(_Infer)
_BOOLS = b"\x00\x01"


def parse_infer(body: bytes, header_length: str | None, signature: Signature) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: the whole body, decompressed.  Binary inputs of the result are views of it.
        header_length: the value of Inference-Header-Content-Length, None if there is none.
        signature: of the version that shall answer.

    Raises:
        BadRequest: malformed; nothing of it was run.
        Unprocessable: well-formed, but not this signature.
    """
    if header_length is None:
        text, tail = body, len(body)
    else:
        tail = _read_length(header_length, len(body))
        if tail == 0:
            return _parse_raw(body, signature)
        text = body[:tail]
        known = signature.memo.recall(text, body)
        if known is not None:
            return known
    rest, arrays = cut(text)
    found = _parse(rest, arrays, body, tail, header_length, signature)
    if found is None:  # what was cut belongs to no tensor
        found = _parse(text, {}, body, tail, header_length, signature)
        assert found is not None
    return found


def _parse(
    text: bytes,
    arrays: dict[bytes, bytes],
    body: bytes,
    tail: int,
    header_length: str | None,
    signature: Signature,
) -> InferRequest | None:
    """Read `text`, out of which `arrays` were cut, and the bytes of `body` from `tail` on."""
    request: _Infer = read_json(_decoder, text)

    colons = 1
    given_id = request.id
    if given_id is UNSET:
        given_id = None
    else:
        colons += 1
        if given_id is not None and len(given_id) > ID_BYTES_MAX >> 2:
            check_id(given_id)

    inputs: list[Tensor | None] = [None] * len(signature.inputs)
    rules = signature.inputs
    bulk: list[msgspec.Raw] = []
    in_order = header_length is not None
    end = len(body)
    for index, given in enumerate(request.inputs):
        rule = rules.get(given.name)
        if rule is None:
            raise signature.refuse_unknown(given.name)
        if inputs[rule.position] is not None:
            raise BadRequest(f"inputs[{index}]: input {quote(rule.name)} is given twice")
        if given.datatype != rule.datatype:
            raise signature.refuse_datatype(rule, given.datatype)
        shape = given.shape
        check_shape(signature, rule, shape)
        count = math.prod(shape)
        data = given.data
        colons += 3
        size = _binary_size(given, index)
        in_order = in_order and size is not None and index == rule.position
        if size is None:
            if data is UNSET:
                raise BadRequest(
                    f"inputs[{index}] has neither data nor the parameter binary_data_size"
                )
            array = arrays.pop(bytes(data), None) if arrays else None
            content: bytes | memoryview = pack_data(rule, array or data, shape, count, index)
            if array is None:
                bulk.append(data)
            colons += 1
            if array is None and rule.datatype == "BYTES":
                colons += bytes(data).count(b":")
        else:
            if data is not UNSET:
                raise BadRequest(f"inputs[{index}] has both data and binary_data_size")
            if header_length is None:
                raise BadRequest(
                    f"inputs[{index}] has binary_data_size, but the header "
                    "Inference-Header-Content-Length is missing"
                )
            if size > end - tail:
                raise BadRequest(
                    f"inputs[{index}]: binary_data_size is {quote(str(size))}, and {end - tail} "
                    "bytes are left in the body"
                )
            content = memoryview(body)[tail : tail + size]
            tail += size
            check_binary(rule, content, shape, count, index)
        if given.parameters is not UNSET:
            colons += 1 + len(given.parameters or ())
        inputs[rule.position] = Tensor(rule.name, rule.datatype, shape, content)
    if arrays:
        return None
    if tail != end:
        raise BadRequest(f"{end - tail} bytes of the body are left behind the last tensor")

    timeout_us = priority = 0
    all_binary = False
    parameters: dict[str, Parameter] = {}
    if request.parameters is not UNSET:
        colons += 1
        if request.parameters:
            colons += len(request.parameters)
            timeout_us, priority, all_binary = read_steering(request.parameters)
            parameters = relevant(request.parameters)
    outputs: tuple[str, ...] = ()
    classes: dict[str, int] = {}
    binary = signature.output_names if all_binary else NOTHING
    if request.outputs is not UNSET:
        colons += 1
        if request.outputs:
            more, outputs, binary, classes = read_outputs(request.outputs, all_binary)
            colons += more
    if text.count(b":") != colons:
        check_keys(text, bulk)

    if None in inputs:
        raise signature.refuse_missing(inputs)
    tensors: list[Tensor] = inputs  # type: ignore[assignment]  # None was ruled out
    if outputs or signature.no_json:
        signature.pick_outputs(outputs, binary, classes)
    found = InferRequest(
        given_id,
        tensors,
        signature.rows_of(tensors),
        outputs,
        binary,
        parameters,
        timeout_us,
        priority,
        classes,
    )
    if in_order:
        signature.memo.keep(text, body, found)
    return found


def _read_length(value: str, body_bytes: int) -> int:
    # int() would also take "+1", " 1 ", "1_0" and other scripts' digits.
    if not (value.isascii() and value.isdigit()) or len(value) > 12:
        raise BadRequest(
            f"Inference-Header-Content-Length must be a whole number from 0, not {quote(value)}"
        )
    length = int(value)
    if length > body_bytes:
        raise BadRequest(
            f"Inference-Header-Content-Length is {length}, and the body has {body_bytes} bytes"
        )
    return length


def _binary_size(given: _Input, index: int) -> int | None:
    parameters = given.parameters
    if not parameters:
        return None
    if "shared_memory_region" in parameters:
        raise BadRequest(f"inputs[{index}]: shared memory is not spoken here; send the data")
    if "binary_data_size" not in parameters:
        return None
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0 or size >= 2**63:
        raise BadRequest(
            f"inputs[{index}]: binary_data_size must be a whole number of bytes from 0"
        )
    return size


def read_outputs(
    given: list[Output], all_binary: bool
) -> tuple[int, tuple[str, ...], frozenset[str], dict[str, int]]:
    """Read which outputs are asked for, and how.

    Returns:
        The colons of their keys, the names, the names of those wanted in binary form, and how
        many classes are wanted of those that are to be classified.

    Raises:
        BadRequest: a parameter of an output has another type, or is not spoken here.
    """
    colons = len(given)
    binary = []
    classes = {}
    for output in given:
        parameters = output.parameters
        is_binary = all_binary
        if parameters is not UNSET:
            colons += 1
            if parameters:
                colons += len(parameters)
                if "classification" in parameters and (
                    count := read_class_count(parameters, output.name)
                ):
                    classes[output.name] = count
                if "shared_memory_region" in parameters:
                    raise BadRequest(
                        f"output {quote(output.name)}: shared memory is not spoken here"
                    )
                if "binary_data" in parameters:
                    is_binary = read_flag(parameters, "binary_data")
        if is_binary:
            binary.append(output.name)
    return colons, tuple(output.name for output in given), frozenset(binary), classes


def check_id(value: str) -> None:
    """Refuse an id of more than 1 KiB."""
    if len(value) > ID_BYTES_MAX or len(value.encode()) > ID_BYTES_MAX:
        raise BadRequest(f"id is longer than {ID_BYTES_MAX} bytes")


def check_shape(signature: Signature, rule: InputRule, shape: tuple[int, ...]) -> None:
    """Refuse a shape that is not the signature's."""
    if len(shape) != rule.rank:
        raise signature.refuse_shape(rule, shape)
    for axis, dim in rule.fixed:
        if shape[axis] != dim:
            raise signature.refuse_shape(rule, shape)


def check_binary(
    rule: InputRule, content: memoryview, shape: tuple[int, ...], count: int, index: int
) -> None:
    """Refuse bytes that are not a tensor of this shape.

    Raises:
        BadRequest: the number of bytes is not the shape's, a BOOL is neither 0 nor 1, or the
            lengths in a BYTES tensor do not add up.
    """
    size = len(content)
    if rule.itemsize:
        if count * rule.itemsize != size:
            raise BadRequest(
                f"inputs[{index}]: got {size} bytes for shape {shape_text(shape)[:80]} of "
                f"{rule.datatype}, expected {quote(str(count * rule.itemsize))}"
            )
        if rule.datatype == "BOOL" and bytes(content).translate(None, _BOOLS):
            raise BadRequest(f"inputs[{index}]: a BOOL must be a byte 0 or 1")
        return
    try:
        element_ends(content, count)
    except ValueError as error:
        raise BadRequest(f"inputs[{index}]: malformed BYTES tensor: {error}") from None


def _parse_raw(body: bytes, signature: Signature) -> InferRequest:
    """Read a body that is nothing but the bytes of the single input.

    The shape is deduced: the batch is 1 where another axis is variable too, and at most one axis
    may be left open.  A BYTES input takes the whole body as its one element, as in Triton.
    """
    if len(signature.inputs) != 1:
        raise BadRequest(
            f"a raw body needs a model with a single input; {quote(signature.model)} has "
            f"{len(signature.inputs)}"
        )
    (rule,) = signature.inputs.values()
    shape = list(rule.shape)
    if signature.batched and (shape.count(-1) > 1 or not rule.itemsize):
        shape[0] = 1
    variable = shape.count(-1)
    content: bytes | memoryview = memoryview(body)
    if not rule.itemsize:
        shape = [1 if dim == -1 else dim for dim in shape]
        if math.prod(shape) != 1:
            raise BadRequest(f"a raw body needs a BYTES input of one element, not {rule.shape}")
        if len(body) > 0xFFFF_FFFF:
            raise TooLarge("the raw body is too long for one element")
        content = len(body).to_bytes(LENGTH_BYTES, "little") + body
    elif variable > 1:
        raise BadRequest(
            f"a raw body needs an input with at most one variable axis; {quote(rule.name)} has "
            f"shape {shape_text(rule.shape)}"
        )
    elif variable:
        unit = rule.itemsize * math.prod(dim for dim in shape if dim != -1)
        if unit == 0 or len(body) % unit:
            raise BadRequest(
                f"{len(body)} bytes are no whole number of {rule.datatype} rows of shape "
                f"{shape_text(rule.shape)}"
            )
        shape[shape.index(-1)] = len(body) // unit
    dims = tuple(shape)
    if rule.itemsize:
        check_binary(rule, memoryview(body), dims, math.prod(dims), 0)
    signature.pick_outputs((), signature.output_names)
    tensors = [Tensor(rule.name, rule.datatype, dims, content)]
    return InferRequest(None, tensors, signature.rows_of(tensors), (), signature.output_names)
