"""The bodies of `infer` as msgpack: the structure of the JSON body, and bytes as they are.

    body    {"id"?, "parameters"?, "inputs": [tensor, …], "outputs"?: [{"name", …}, …]}
    tensor  {"name", "shape", "datatype", "data", "parameters"?}
    data    bin    the tensor in binary form: little-endian, row-major, BYTES elements each behind
                   its length; or
            array  flat, or nested as the shape says; of at most `ELEMENTS_MAX` elements

A short body can claim, or hold, what is huge once it is decoded: 8 MB of empty maps are 572 MB of
them.  So nothing is decoded but by a type and behind a length that was read first: maps and arrays
of the known fields by msgspec's own bounds, data by the length that its shape says.  Ext types,
unknown fields and doubled keys are refused, and with them any depth beyond a tensor's rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, UnsetType

from edge.body import (
    DIM_MAX,
    PARAMETERS_MAX,
    TENSORS_MAX,
    Output,
    check_binary,
    check_id,
    check_shape,
    read_outputs,
)
from edge.body_json import pack_values
from edge.body_parameters import read_flag, read_steering, relevant
from edge.body_render import pick, refuse_size
from edge.body_request import NOTHING, InferRequest, Parameter
from edge.body_signature import RANK_MAX, InputRule, Signature
from edge.content import MSGPACK
from edge.errors import BadRequest, quote
from edge.tensors import (
    CODES,
    DTYPES,
    Buffer,
    Tensor,
    TensorLike,
    join_bytes,
    shape_text,
    split_bytes,
)

ELEMENTS_MAX = 1 << 20  # in the arrays of one tensor: each becomes an object; bin has no such bound
LISTS_MAX = 1 << 14  # in one nested tensor
HEAD_BYTES_USUAL = 4096  # what there is of a tensor in front of its data
LOOKS_MAX = 16  # tensors that are looked at to guess where to read a body

_T = TypeVar("_T")
_Raws = Annotated[list[Raw], Meta(max_length=TENSORS_MAX)]
_Parameters = Annotated[dict[str, Parameter], Meta(max_length=PARAMETERS_MAX)] | None


class _Infer(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    inputs: _Raws
    id: str | UnsetType | None = UNSET
    parameters: Raw | UnsetType = UNSET
    outputs: _Raws | UnsetType | None = UNSET


class _Input(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=DIM_MAX)], ...], Meta(max_length=RANK_MAX)]
    datatype: str
    data: Raw
    parameters: Raw | UnsetType = UNSET


class _Output(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    name: str
    parameters: Raw | UnsetType = UNSET


_infer = msgspec.msgpack.Decoder(_Infer)
_input = msgspec.msgpack.Decoder(_Input)
_output = msgspec.msgpack.Decoder(_Output)
_parameters: msgspec.msgpack.Decoder[dict[str, Parameter] | None] = msgspec.msgpack.Decoder(
    _Parameters
)
_raws = msgspec.msgpack.Decoder(list[Raw])
_texts = msgspec.msgpack.Decoder(list[str])
_bytes = msgspec.msgpack.Decoder(list[bytes])
_numbers: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "BOOL": msgspec.msgpack.Decoder(list[bool]),
    **{
        datatype: msgspec.msgpack.Decoder(list[float] if code in "efd" else list[int])
        for datatype, code in CODES.items()
    },
}
_encode = msgspec.msgpack.Encoder().encode
_HEADERS = [("content-type", MSGPACK)]
_DATA_KEY = _encode("data")
# How many bytes of a map's or an array's head hold its length, by its first byte.
_MAPS = {0xDE: 2, 0xDF: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_BINS = {0xC4: 1, 0xC5: 2, 0xC6: 4}


def parse_msgpack(
    body: bytes, header_length: str | None, signature: Signature, *, binary: bool
) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: the whole body, decompressed.  Inputs given as bin are views of it.
        header_length: the value of Inference-Header-Content-Length, which does not belong here.
        signature: of the version that shall answer.
        binary: whether outputs are wanted in binary form where the request does not say.

    Raises:
        BadRequest: malformed; nothing of it was run.
        Unprocessable: well-formed, but not this signature.
    """
    if header_length is not None:
        raise BadRequest("Inference-Header-Content-Length belongs to JSON bodies, not to msgpack")
    request = _decode(_infer, body, "the body")
    given_id = None if request.id is UNSET else request.id
    if given_id is not None:
        check_id(given_id)
    fields = 1 + (request.id is not UNSET) + (request.parameters is not UNSET)
    _check_fields(memoryview(body), fields + (request.outputs is not UNSET), "the body")

    inputs: list[Tensor | None] = [None] * len(signature.inputs)
    for index, raw in enumerate(request.inputs):
        rule, tensor = _read_input(raw, signature, index)
        if inputs[rule.position] is not None:
            raise BadRequest(f"inputs[{index}]: input {quote(rule.name)} is given twice")
        inputs[rule.position] = tensor

    timeout_us = priority = 0
    parameters: dict[str, Parameter] = {}
    if request.parameters is not UNSET:
        given = _read_parameters(request.parameters, "parameters")
        timeout_us, priority, _ = read_steering(given)
        if "binary_data_output" in given:
            binary = read_flag(given, "binary_data_output")
        parameters = relevant(given)
    outputs: tuple[str, ...] = ()
    classes: dict[str, int] = {}
    as_binary = signature.output_names if binary else NOTHING
    if request.outputs:
        wanted = [_read_output(raw, index) for index, raw in enumerate(request.outputs)]
        _, outputs, as_binary, classes = read_outputs(wanted, binary)

    if None in inputs:
        raise signature.refuse_missing(inputs)
    tensors: list[Tensor] = inputs  # type: ignore[assignment]  # None was ruled out
    if outputs or signature.no_json:
        signature.pick_outputs(outputs, as_binary, classes)
    return InferRequest(
        given_id,
        tensors,
        signature.rows_of(tensors),
        outputs,
        as_binary,
        parameters,
        timeout_us,
        priority,
        classes,
    )


def has_much_to_decode(body: bytes, here_bytes: int) -> bool:
    """Tell whether a body holds more than `here_bytes` beside its first tensors given as bin.

    A guess, for where to read it: in a thread what takes long, here what is only passed on.
    """
    rest_bytes, at = len(body), 0
    for _ in range(LOOKS_MAX):
        if rest_bytes <= here_bytes:
            return False
        at = body.find(_DATA_KEY, at, at + HEAD_BYTES_USUAL) + len(_DATA_KEY)
        size = _BINS.get(body[at]) if len(_DATA_KEY) <= at < len(body) else None
        if size is None:
            return True
        length = int.from_bytes(body[at + 1 : at + 1 + size], "big")
        at += 1 + size + length
        rest_bytes -= length
    return True


def render_msgpack(
    request: InferRequest, model_name: str, model_version: str, outputs: Sequence[TensorLike]
) -> tuple[bytes, list[tuple[str, str]]]:
    """Render the answer to an infer request: what is wanted in binary form as bin, else arrays.

    Returns:
        The body, and its headers in lower case, without content-length.

    Raises:
        WorkerLost: an output is missing or has not the bytes of its shape.
    """
    if request.outputs:
        outputs = pick(outputs, request.outputs)
    binary = request.binary
    answer: dict[str, Any] = {"model_name": model_name, "model_version": model_version}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "data": tensor.data if tensor.name in binary else _as_list(tensor),
        }
        for tensor in outputs
    ]
    return _encode(answer), _HEADERS.copy()


def _as_list(tensor: TensorLike) -> list[Any]:
    count = math.prod(tensor.shape)
    dtype = DTYPES.get(tensor.datatype)
    try:
        if dtype is None:
            return split_bytes(tensor.data, count)
        found = np.frombuffer(tensor.data, dtype) if count else np.empty(0, dtype)
    except ValueError:
        raise refuse_size(tensor) from None
    if len(found) != count:
        raise refuse_size(tensor)
    values: list[Any] = found.tolist()
    return values


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes | Raw, where: str) -> _T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise BadRequest(f"{where} is not valid msgpack: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "a string is not valid UTF-8"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _length(data: memoryview, fix: int, sizes: dict[int, int]) -> tuple[int, int]:
    """Read the length at the head of a map or an array, and where its content begins.

    The length is -1 for what is none.  `fix` is the first byte of an empty one with its length in
    that byte, which holds up to 15.
    """
    first = data[0]
    if first & 0xF0 == fix:
        return first & 0x0F, 1
    size = sizes.get(first)
    if size is None:
        return -1, 0
    return int.from_bytes(data[1 : 1 + size], "big"), 1 + size


def _check_fields(data: memoryview, fields: int, where: str) -> None:
    """Refuse a map that holds more keys than fields came out of it: some key is in it twice."""
    # The usual map says its length in its first byte.
    if data[0] != 0x80 | fields and _length(data, 0x80, _MAPS)[0] != fields:
        raise BadRequest(f"{where} has the same key twice", code="doubled_key")


def _read_parameters(data: Raw | UnsetType, where: str) -> dict[str, Parameter]:
    if data is UNSET:
        return {}
    found = _decode(_parameters, data, where)
    if found is None:
        return {}
    _check_fields(memoryview(data), len(found), where)
    return found


def _read_output(data: Raw, index: int) -> Output:
    where = f"outputs[{index}]"
    found = _decode(_output, data, where)
    _check_fields(memoryview(data), 1 + (found.parameters is not UNSET), where)
    return Output(found.name, _read_parameters(found.parameters, f"{where}.parameters"))


def _read_input(data: Raw, signature: Signature, index: int) -> tuple[InputRule, Tensor]:
    where = f"inputs[{index}]"
    given = _decode(_input, data, where)
    parameters = given.parameters
    _check_fields(memoryview(data), 4 + (parameters is not UNSET), where)
    if parameters is not UNSET:
        _check_input_parameters(_read_parameters(parameters, f"{where}.parameters"), where)
    rule = signature.inputs.get(given.name)
    if rule is None:
        raise signature.refuse_unknown(given.name)
    if given.datatype != rule.datatype:
        raise signature.refuse_datatype(rule, given.datatype)
    shape = given.shape
    check_shape(signature, rule, shape)
    content = _read_data(rule, given.data, shape, index)
    return rule, Tensor(rule.name, rule.datatype, shape, content)


def _check_input_parameters(parameters: dict[str, Parameter], where: str) -> None:
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{where}: shared memory is not spoken here; send the data")
    if "binary_data_size" in parameters:
        raise BadRequest(f"{where}: binary_data_size belongs to JSON bodies; send data as bin")


def _read_data(rule: InputRule, data: Raw, shape: tuple[int, ...], index: int) -> Buffer:
    """Return the bytes of a tensor; raises `BadRequest`."""
    view = memoryview(data)
    count = math.prod(shape)
    size = _BINS.get(view[0])
    if size is not None:
        content = view[1 + size :]
        check_binary(rule, content, shape, count, index)
        return content
    where = f"inputs[{index}].data"
    length, start = _length(view, 0x90, _ARRAYS)
    if length < 0:
        raise BadRequest(f"{where} must be bin or an array")
    if count > ELEMENTS_MAX:
        raise BadRequest(f"{where}: more than {ELEMENTS_MAX} elements must be sent as bin")
    if length > 0 and _length(view[start:], 0x90, _ARRAYS)[0] >= 0:
        values: list[Any] = []
        for one in _innermost(data, shape, where):
            _check_length(_length(memoryview(one), 0x90, _ARRAYS)[0], shape[-1], where)
            values += _elements(rule, one, where)
    else:
        _check_length(length, count, where)
        values = _elements(rule, data, where)
    return join_bytes(values) if rule.datatype == "BYTES" else pack_values(rule, values, index)


def _check_length(found: int, expected: int, where: str) -> None:
    if found != expected:
        raise BadRequest(f"{where} has {max(found, 0)} elements where {expected} belong")


def _innermost(data: Raw, shape: tuple[int, ...], where: str) -> list[Raw]:
    """Return the lists that hold the elements of a nested array, each level of it as its shape."""
    level = [data]
    for dim in shape[:-1]:
        if len(level) * dim > LISTS_MAX:
            raise BadRequest(f"{where}: more than {LISTS_MAX} lists in lists; send it flat")
        for one in level:
            if _length(memoryview(one), 0x90, _ARRAYS)[0] != dim:
                raise BadRequest(f"{where} is not nested as its shape {shape_text(shape)[:80]}")
        level = [inner for one in level for inner in _decode(_raws, one, where)]
    return level


def _elements(rule: InputRule, data: Raw, where: str) -> list[Any]:
    decoder = _numbers.get(rule.datatype)
    if decoder is not None:
        found: list[Any] = _decode(decoder, data, where)
        return found
    if rule.itemsize:
        raise BadRequest(f"{where}: {rule.datatype} cannot be said in an array; send it as bin")
    view = memoryview(data)
    length, start = _length(view, 0x90, _ARRAYS)
    if length and view[start] in _BINS:
        return _decode(_bytes, data, where)
    return [text.encode() for text in _decode(_texts, data, where)]
