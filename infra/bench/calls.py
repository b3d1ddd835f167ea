"""What a load sends: one request, and where its body differs from one to the next."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.client import connect

VARIED_BYTES = 6
"""48 bits count the requests of a run from a random start: two runs do not meet."""

OIP_NAMES = {"float32": "FP32", "int32": "INT32"}


class BadTarget(Exception):
    """A server does not answer as it should, so measuring it would mean nothing."""


@dataclass(frozen=True)
class Target:
    """A server that can be put under load.

    `pids` is asked before and after each sample and names every process that works
    for a request, none of which may end in between.
    """

    name: str
    base_url: str
    pids: Callable[[], Sequence[int]]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request, sent again and again."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    vary_at: tuple[int, ...] = ()  # offsets in the body; empty: every request is the same


@dataclass(frozen=True)
class Answer:
    """One response, its header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def oip_call(
    target: Target, endpoint: str, tensor: str, array: NDArray[Any], *, varied: bool
) -> Call:
    """Build an Open Inference Protocol call with the tensor as raw bytes, both ways."""
    data = array.tobytes()
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": tensor,
                    "shape": array.shape,
                    "datatype": OIP_NAMES[array.dtype.name],
                    "parameters": {"binary_data_size": len(data)},
                }
            ],
            "parameters": {"binary_data_output": True},
        },
        separators=(",", ":"),
    ).encode()
    return Call(
        f"{target.base_url}/v2/models/{endpoint}/infer",
        headers={
            **target.headers,
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
        body=header + data,
        vary_at=varied_offsets(array, len(header)) if varied else (),
    )


def json_call(target: Target, path: str, tensor: str, array: NDArray[Any]) -> Call:
    """Build an Open Inference Protocol call with the tensor as JSON numbers, flat."""
    data = {
        "name": tensor,
        "shape": array.shape,
        "datatype": OIP_NAMES[array.dtype.name],
        "data": array.ravel().tolist(),
    }
    return Call(
        f"{target.base_url}{path}",
        headers={**target.headers, "Content-Type": "application/json"},
        body=json.dumps({"inputs": [data]}, separators=(",", ":")).encode(),
    )


def raw_call(target: Target, path: str, array: NDArray[Any], *, varied: bool) -> Call:
    """Build a call whose body is nothing but the tensor's bytes."""
    return Call(
        f"{target.base_url}{path}",
        headers={**target.headers, "Content-Type": "application/octet-stream"},
        body=array.tobytes(),
        vary_at=varied_offsets(array, 0) if varied else (),
    )


def varied_offsets(array: NDArray[Any], start: int) -> tuple[int, ...]:
    """Choose bytes of a little-endian tensor that take any value and stay sound input.

    Of a float32 these are the two low bytes of the fraction, so no number becomes NaN
    or changes by more than a hundredth; of an int32 the lowest, so it stays in 0..255.

    Args:
        array: float32 or int32, with at least six elements.
        start: where the tensor begins in the body.
    """
    low_bytes = {"float32": (0, 1), "int32": (0,)}[array.dtype.name]
    offsets = tuple(
        start + element * array.itemsize + byte
        for element in range(VARIED_BYTES // len(low_bytes))
        for byte in low_bytes
    )
    if array.size < VARIED_BYTES // len(low_bytes):
        raise ValueError(f"{array.size} elements are too few to vary {VARIED_BYTES} bytes")
    return offsets


def probe(call: Call, timeout_s: float = 30.0) -> Answer:
    """Send a call once, unvaried.

    Raises:
        BadTarget: no answer, or one that is not 200.
    """
    url = urllib.parse.urlsplit(call.url)
    connection = connect(call.url, timeout_s)
    try:
        connection.request(call.method, url.path, call.body or None, dict(call.headers))
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BadTarget(f"{call.method} {call.url}: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise BadTarget(f"{call.method} {call.url}: {response.status} {body[:300]!r}")
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body)


def tensor_of(answer: Answer) -> NDArray[np.float32]:
    """Return the float32 tensor of an answer: JSON numbers, behind a JSON head, or all of it."""
    if answer.headers.get("content-type") == "application/json":
        return np.array(json.loads(answer.body)["outputs"][0]["data"], "<f4")
    start = int(answer.headers.get("inference-header-content-length", "0"))
    return np.frombuffer(answer.body[start:], dtype="<f4")
