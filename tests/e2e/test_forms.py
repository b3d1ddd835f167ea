"""The forms of a call over a real socket: msgpack, compressed answers, classes, content types."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import tritonclient.http as triton

from tests.support import models
from tests.support.stack import Answer, Stack

ROW = np.float32([[0.1, 0.75, -1.0, 0.5]])
MSGPACK = {"content-type": "application/msgpack"}
INFLATE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


@pytest.fixture(scope="module")
def plain(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish ``y = x``, FP32 [N, 4], with labels for two of its four classes."""
    path = models.identity(tmp_path_factory.mktemp("forms") / "p.onnx")
    stack.publish("forms-plain", path, labels={"classes.y": "cat,dog"})
    return "forms-plain"


@pytest.fixture(scope="module")
def wide(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish ``y = x``, FP32 [N, M]."""
    path = models.identity(tmp_path_factory.mktemp("forms") / "w.onnx", "FP32", ["N", "M"])
    stack.publish("forms-wide", path)
    return "forms-wide"


def _body(data: Any = None, array: np.ndarray = ROW, **fields: Any) -> dict[str, Any]:
    given = {"name": "x", "datatype": "FP32", "shape": list(array.shape)}
    return {"inputs": [{**given, "data": array.tobytes() if data is None else data}], **fields}


def _pack(stack: Stack, model: str, body: Any, **headers: str) -> Answer:
    sent = {**MSGPACK, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return stack.request("POST", f"/v2/models/{model}/infer", msgpack.packb(body), sent)


def _json(stack: Stack, model: str, body: Any, **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return stack.request("POST", f"/v2/models/{model}/infer", json.dumps(body), sent)


# --- msgpack -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, ROW.ravel().tolist(), ROW.tolist()])
def test_msgpack_in_gives_msgpack_out(stack: Stack, plain: str, data: Any) -> None:
    answer = _pack(stack, plain, _body(data, id="7"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/msgpack")
    assert msgpack.unpackb(answer.body) == {
        "model_name": plain,
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": ROW.tobytes()}],
    }


def test_msgpack_out_may_be_an_array(stack: Stack, plain: str) -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": False}}]
    (output,) = msgpack.unpackb(_pack(stack, plain, _body(outputs=outputs)).body)["outputs"]
    assert output["data"] == ROW.ravel().tolist()


def test_msgpack_in_may_ask_for_json(stack: Stack, plain: str) -> None:
    answer = _pack(stack, plain, _body(), accept="application/json")
    assert answer.headers["content-type"] == "application/json"
    assert np.float32(answer.output()).tobytes() == ROW.tobytes()


def test_json_in_may_ask_for_msgpack(stack: Stack, plain: str) -> None:
    body = _body(ROW.tolist(), parameters={"binary_data_output": True})
    answer = _json(stack, plain, body, accept="application/msgpack")
    assert answer.headers["content-type"] == "application/msgpack"
    assert msgpack.unpackb(answer.body)["outputs"][0]["data"] == ROW.tobytes()


def test_msgpack_and_json_of_the_same_call_share_an_answer(stack: Stack, plain: str) -> None:
    row = np.random.default_rng().random((1, 4), np.float32)  # which nobody has sent before
    assert "hit" not in _json(stack, plain, _body(row.tolist(), row)).headers["cache-status"]
    assert "hit" in _pack(stack, plain, _body(None, row)).headers["cache-status"]


def test_megabytes_of_msgpack_pass_both_ways(stack: Stack, wide: str) -> None:
    array = np.arange(1 << 20, dtype=np.float32).reshape(2, -1)
    answer = _pack(stack, wide, _body(None, array))
    assert msgpack.unpackb(answer.body)["outputs"][0]["data"] == array.tobytes()


def test_msgpack_may_be_compressed(stack: Stack, plain: str) -> None:
    body = gzip.compress(msgpack.packb(_body()))
    headers = {**MSGPACK, "content-encoding": "gzip", "accept-encoding": "gzip"}
    answer = stack.request("POST", f"/v2/models/{plain}/infer", body, headers)
    assert answer.headers["content-encoding"] == "gzip"
    found = msgpack.unpackb(gzip.decompress(answer.body))
    assert found["outputs"][0]["data"] == ROW.tobytes()


def test_an_error_about_msgpack_is_json(stack: Stack, plain: str) -> None:
    answer = _pack(stack, plain, {"inputs": []}, accept="application/msgpack")
    assert (answer.status, answer.headers["content-type"]) == (422, "application/json")
    assert "Missing: 'x'" in answer.error


# --- content types -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "x"]
)
@pytest.mark.parametrize("word", ["infer", "generate", "generate_stream"])
def test_another_content_type_is_not_supported(
    stack: Stack, plain: str, content_type: str, word: str
) -> None:
    path, headers = f"/v2/models/{plain}/{word}", {"content-type": content_type}
    answer = stack.request("POST", path, json.dumps(_body(ROW.tolist())), headers)
    assert answer.status == 415
    assert "application/json" in answer.error


def test_generate_speaks_no_msgpack(stack: Stack, plain: str) -> None:
    path = f"/v2/models/{plain}/generate"
    assert stack.request("POST", path, msgpack.packb({"x": [1.0]}), MSGPACK).status == 415


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", None]
)
def test_json_needs_no_content_type(stack: Stack, plain: str, content_type: str | None) -> None:
    headers = {"content_type": content_type} if content_type else {}
    assert _json(stack, plain, _body(ROW.tolist()), **headers).status == 200


def test_a_form_is_never_read_as_one(stack: Stack, plain: str) -> None:
    path = f"/v2/models/{plain}/infer"
    headers = {"content-type": "application/x-www-form-urlencoded"}  # as curl sends anything
    body = json.dumps(_body(ROW.tolist()))
    assert stack.request("POST", path, body, headers).status == 200
    assert stack.request("POST", path, f"inputs={body}", headers).status == 400


# --- compressed answers --------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [4, 20_000])  # on the loop and off it
@pytest.mark.parametrize("encoding", INFLATE)
def test_an_answer_is_compressed_for_who_asks(
    stack: Stack, wide: str, encoding: str, columns: int
) -> None:
    array = np.zeros((1, columns), np.float32)
    body = _body(array.tolist(), array, parameters={"binary_data_output": True})
    answer = _json(stack, wide, body, accept_encoding=encoding)
    assert answer.headers["content-encoding"] == encoding
    whole = INFLATE[encoding](answer.body)
    # The length of the head counts what it is once it is decompressed.
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(whole[:length])["outputs"][0]["shape"] == [1, columns]
    assert whole[length:] == array.tobytes()
    assert len(answer.body) < len(whole)


def test_what_a_library_could_read_is_no_wish(stack: Stack, plain: str) -> None:
    answer = _json(stack, plain, _body(ROW.tolist()), accept_encoding="gzip, deflate, br")
    assert "content-encoding" not in answer.headers


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_classes(stack: Stack, plain: str, binary: bool) -> None:
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(ROW)
    wanted = triton.InferRequestedOutput("y", binary_data=binary, class_count=3)
    with triton.InferenceServerClient(stack.address) as client:
        result = client.infer(plain, [given], outputs=[wanted], headers=stack.auth())
    found = result.as_numpy("y")
    assert found.shape == (1, 3)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found.ravel()]
    assert texts == ["0.750000:1:dog", "0.500000:3", "0.100000:0:cat"]


def test_classes_come_in_msgpack_too(stack: Stack, plain: str) -> None:
    outputs = [{"name": "y", "parameters": {"classification": 1, "binary_data": False}}]
    (output,) = msgpack.unpackb(_pack(stack, plain, _body(outputs=outputs)).body)["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 1])
    assert output["data"] == [b"0.750000:1:dog"]


def test_classes_and_values_share_an_answer(stack: Stack, plain: str) -> None:
    row = np.float32([[4, 3, 2, 1.5]])
    _json(stack, plain, _body(row.tolist(), row))
    outputs = [{"name": "y", "parameters": {"classification": 1}}]
    _json(stack, plain, _body(row.tolist(), row, outputs=[{"name": "y"}]))
    answer = _json(stack, plain, _body(row.tolist(), row, outputs=outputs))
    assert "hit" in answer.headers["cache-status"]
    assert answer.output() == ["4.000000:0:cat"]


def test_many_classes_are_found_off_the_loop(stack: Stack, wide: str) -> None:
    array = np.arange(30_000, dtype=np.float32).reshape(1, -1)
    outputs = [{"name": "y", "parameters": {"classification": 1}}]
    answer = _json(stack, wide, _body(array.tolist(), array, outputs=outputs))
    assert answer.output() == ["29999.000000:29999"]


def test_what_is_no_number_has_no_classes(stack: Stack, tmp_path: Path) -> None:
    stack.publish("forms-bytes", models.identity(tmp_path / "b.onnx", "BYTES", ["N", 1]))
    body = {
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}],
        "outputs": [{"name": "y", "parameters": {"classification": 1}}],
    }
    answer = _json(stack, "forms-bytes", body)
    assert (answer.status, "is for numbers" in answer.error) == (400, True)
