"""The bodies of `generate` and `generate_stream`: one JSON object with a field per input.

    {"id"?, "parameters"?: {…}, "<input>": <scalar or array>, …}

As Triton's generate extension: shapes are deduced, a scalar is a tensor of one element, and ones
are put in front up to the rank of the signature.  All outputs are answered, as JSON.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edge.body import PARAMETERS_MAX, TENSORS_MAX, check_id, check_shape
from edge.body_json import check_keys, read_json, unfold_data
from edge.body_parameters import read_steering, relevant
from edge.body_request import NOTHING, InferRequest, Parameter
from edge.body_signature import Signature
from edge.errors import BadRequest
from edge.tensors import Tensor

_T = TypeVar("_T")
_Parameters = Annotated[dict[str, Parameter], Meta(max_length=PARAMETERS_MAX)] | None

_top = msgspec.json.Decoder(dict[str, msgspec.Raw])
_id = msgspec.json.Decoder(str | None)
_parameters: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Parameters)


def parse_generate(body: bytes, signature: Signature) -> InferRequest:
    """Read the body of a generate request.

    Args:
        body: the whole body, decompressed.
        signature: of the version that shall answer.  An input named `id` or `parameters` is the
            protocol's field and cannot be given.

    Raises:
        BadRequest: malformed.
        Unprocessable: well-formed, but not this signature.
    """
    top: dict[str, msgspec.Raw] = read_json(_top, body)
    if len(top) > TENSORS_MAX + 2:
        raise BadRequest(f"more than {TENSORS_MAX} inputs")
    colons = len(top)
    given_id: str | None = None
    parameters: dict[str, Parameter] = {}
    if "id" in top:
        given_id = _read_field(_id, top.pop("id"), "id")
        check_id(given_id or "")
    if "parameters" in top:
        parameters = _read_field(_parameters, top.pop("parameters"), "parameters") or {}
        colons += len(parameters)
    timeout_us, priority, _ = read_steering(parameters)

    inputs: list[Tensor | None] = [None] * len(signature.inputs)
    for name, data in top.items():
        rule = signature.inputs.get(name)
        if rule is None:
            raise signature.refuse_unknown(name)
        shape, content = unfold_data(rule, data, f"input {name[:40]!r}")
        check_shape(signature, rule, shape)
        if rule.datatype == "BYTES":
            colons += bytes(data).count(b":")
        inputs[rule.position] = Tensor(rule.name, rule.datatype, shape, content)
    if body.count(b":") != colons:
        check_keys(body, list(top.values()))

    if None in inputs:
        raise signature.refuse_missing(inputs)
    tensors: list[Tensor] = inputs  # type: ignore[assignment]  # None was ruled out
    if signature.no_json:
        signature.pick_outputs((), NOTHING)
    return InferRequest(
        given_id,
        tensors,
        signature.rows_of(tensors),
        (),
        NOTHING,
        relevant(parameters),
        timeout_us,
        priority,
    )


def _read_field(decoder: msgspec.json.Decoder[_T], data: msgspec.Raw, name: str) -> _T:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(" - at")[0]
        raise BadRequest(f"{name}: {reason}") from None
