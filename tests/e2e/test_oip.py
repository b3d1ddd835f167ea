"""The Open Inference Protocol by the clients that people have: unmodified, over a real socket."""

from __future__ import annotations

import inspect
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from httpx import HTTPStatusError
from onnx import helper
from tritonclient.utils import InferenceServerException

from tests.support import models
from tests.support.kserve_client import (
    InferenceRESTClient,
    InferInput,
    InferRequest,
    RESTConfig,
    UnsupportedProtocol,
)
from tests.support.stack import Stack

SAMPLES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 7, 255]], np.uint8),
    "UINT16": np.array([[0, 7, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 7, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 7, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 7, 127]], np.int8),
    "INT16": np.array([[-(2**15), 7, 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 7, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 7, 2**63 - 1]], np.int64),
    "FP16": np.array([[-1.5, 6.1e-5, 65504.0]], np.float16),
    "FP32": np.array([[-1.5, 0.1, 3.4e38]], np.float32),
    "FP64": np.array([[-1.5, 0.1, 1.7e308]], np.float64),
    "BYTES": np.array([[b"", b"ab", "tïdé".encode()]], np.object_),
    "BF16": np.array([[-1.5, 0.1, 3.0e38]], ml_dtypes.bfloat16),
}
WAYS = ["binary", "json"]


def _has_json(datatype: str) -> bool:
    return datatype != "BF16"  # it has no agreed JSON form


ROUND_TRIPS = [
    (datatype, sent, wanted)
    for datatype in SAMPLES
    for sent in WAYS
    for wanted in WAYS
    if _has_json(datatype) or sent == wanted == "binary"
]


@pytest.fixture(scope="module")
def models_of(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Publish one identity per datatype, with two open axes; datatype -> model."""
    folder = tmp_path_factory.mktemp("models")
    for datatype in SAMPLES:
        path = models.identity(folder / f"{datatype}.onnx", datatype, ["N", "M"])
        stack.publish(f"oip-{datatype.lower()}", path)
    return {datatype: f"oip-{datatype.lower()}" for datatype in SAMPLES}


@pytest.fixture(scope="module")
def twins(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish a model of two inputs and outputs, of two datatypes, with awkward names."""
    path = tmp_path_factory.mktemp("twins") / "twins.onnx"
    elements = [models.ELEMENT_TYPES["FP32"], models.ELEMENT_TYPES["INT64"]]
    names = ["serving_default_x:0", "scope/block/y:1"]
    outs = ["StatefulPartitionedCall:0", "out/put:1"]
    models.save(
        path,
        [helper.make_node("Identity", [a], [b]) for a, b in zip(names, outs, strict=True)],
        [models.tensor(n, e, ["N", 2]) for n, e in zip(names, elements, strict=True)],
        [models.tensor(n, e, ["N", 2]) for n, e in zip(outs, elements, strict=True)],
    )
    stack.publish("oip-twins", path)
    return "oip-twins"


@pytest.fixture(scope="module")
def plain(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish ``y = x``, FP32 [N, 4]."""
    stack.publish("oip-plain", models.identity(tmp_path_factory.mktemp("plain") / "p.onnx"))
    return "oip-plain"


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[triton.InferenceServerClient]:
    """tritonclient, as it is."""
    client = triton.InferenceServerClient(stack.address)
    yield client
    client.close()


@pytest.fixture
async def aio_client(stack: Stack) -> AsyncIterator[triton_aio.InferenceServerClient]:
    """tritonclient's asyncio one, as it is."""
    async with triton_aio.InferenceServerClient(stack.address) as client:
        yield client


def _input(array: np.ndarray, datatype: str, *, binary: bool, name: str = "x") -> Any:
    given = triton.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def _same(found: Any, sent: np.ndarray) -> bool:
    if sent.dtype == np.object_:  # JSON gives text where binary gives bytes
        texts = [v.encode() if isinstance(v, str) else v for v in found.ravel()]
        return found.shape == sent.shape and texts == list(sent.ravel())
    as_sent = np.asarray(found).astype(sent.dtype).reshape(found.shape)
    return found.shape == sent.shape and as_sent.tobytes() == sent.tobytes()


@pytest.mark.parametrize(("datatype", "sent", "wanted"), ROUND_TRIPS)
def test_every_datatype_comes_back_bit_for_bit(
    stack: Stack, models_of: dict[str, str], client: Any, datatype: str, sent: str, wanted: str
) -> None:
    sample = SAMPLES[datatype]
    result = client.infer(
        models_of[datatype],
        [_input(sample, datatype, binary=sent == "binary")],
        outputs=[triton.InferRequestedOutput("y", binary_data=wanted == "binary")],
        headers=stack.auth(),
    )
    assert result.get_output("y")["datatype"] == datatype
    assert ("binary_data_size" in result.get_output("y").get("parameters", {})) == (
        wanted == "binary"
    )
    assert _same(result.as_numpy("y"), sample)


@pytest.mark.parametrize("datatype", SAMPLES)
async def test_the_asyncio_client_gets_the_same(
    stack: Stack, models_of: dict[str, str], aio_client: Any, datatype: str
) -> None:
    result = await aio_client.infer(
        models_of[datatype],
        [_input(SAMPLES[datatype], datatype, binary=True)],
        headers=stack.auth(),
    )
    assert _same(result.as_numpy("y"), SAMPLES[datatype])


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BOOL"])
@pytest.mark.parametrize("shape", [(3, 0), (5, 1), (32, 2)])
@pytest.mark.parametrize("way", WAYS)
def test_open_axes_may_have_any_length(
    stack: Stack, models_of: dict[str, str], client: Any, datatype: str, shape: Any, way: str
) -> None:
    array = np.resize(SAMPLES[datatype], shape)
    result = client.infer(
        models_of[datatype],
        [_input(array, datatype, binary=way == "binary")],
        outputs=[triton.InferRequestedOutput("y", binary_data=way == "binary")],
        headers=stack.auth(),
    )
    assert result.get_output("y")["shape"] == list(shape)
    assert list(result.as_numpy("y").ravel()) == _texts(array, way)


def _texts(array: np.ndarray, way: str) -> list[Any]:
    if array.dtype == np.object_ and way == "json":
        return [value.decode() for value in array.ravel()]
    return list(array.ravel())


def test_a_scalar_has_an_empty_shape(stack: Stack, client: Any, tmp_path: Path) -> None:
    stack.publish("oip-scalar", models.identity(tmp_path / "s.onnx", "FP64", ()))
    answer = stack.infer("oip-scalar", {"x": ("FP64", [], [0.1])})
    assert (answer.json()["outputs"][0]["shape"], answer.output()) == ([], [0.1])
    result = client.infer(
        "oip-scalar",
        [_input(np.array(0.1), "FP64", binary=True)],
        headers=stack.auth(),
    )
    assert result.as_numpy("y").shape == ()
    assert float(result.as_numpy("y")) == 0.1


def test_names_may_have_colons_and_slashes(stack: Stack, twins: str, client: Any) -> None:
    result = client.infer(twins, _twin_inputs(), headers=stack.auth())
    assert result.as_numpy("StatefulPartitionedCall:0").tolist() == [[1.0, 2.0]]
    assert result.as_numpy("out/put:1").tolist() == [[3, 4]]


def _twin_inputs(*, binary: tuple[bool, bool] = (True, True)) -> list[Any]:
    return [
        _input(np.float32([[1, 2]]), "FP32", binary=binary[0], name="serving_default_x:0"),
        _input(np.int64([[3, 4]]), "INT64", binary=binary[1], name="scope/block/y:1"),
    ]


@pytest.mark.parametrize("binary", [(True, False), (False, True)])
def test_json_and_binary_tensors_may_be_mixed(
    stack: Stack, twins: str, client: Any, binary: tuple[bool, bool]
) -> None:
    outputs = [
        triton.InferRequestedOutput("out/put:1", binary_data=binary[0]),
        triton.InferRequestedOutput("StatefulPartitionedCall:0", binary_data=binary[1]),
    ]
    result = client.infer(twins, _twin_inputs(binary=binary), outputs=outputs, headers=stack.auth())
    assert [o["name"] for o in result.get_response()["outputs"]] == [o.name() for o in outputs]
    assert result.as_numpy("StatefulPartitionedCall:0").tolist() == [[1.0, 2.0]]
    assert result.as_numpy("out/put:1").tolist() == [[3, 4]]


def test_only_the_wanted_outputs_come(stack: Stack, twins: str, client: Any) -> None:
    wanted = [triton.InferRequestedOutput("out/put:1")]
    result = client.infer(twins, _twin_inputs(), outputs=wanted, headers=stack.auth())
    assert [o["name"] for o in result.get_response()["outputs"]] == ["out/put:1"]
    assert result.as_numpy("StatefulPartitionedCall:0") is None


def test_the_id_comes_back(stack: Stack, plain: str, client: Any) -> None:
    result = client.infer(plain, _plain_inputs(), request_id="17-ä", headers=stack.auth())
    assert result.get_response()["id"] == "17-ä"


def _plain_inputs(rows: int = 1) -> list[Any]:
    return [_input(np.ones((rows, 4), np.float32), "FP32", binary=True)]


def test_the_parameters_that_tritonclient_sends_are_taken(
    stack: Stack, plain: str, client: Any
) -> None:
    result = client.infer(
        plain,
        _plain_inputs(),
        priority=3,
        timeout=2_000_000,
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        parameters={"own": "word", "number": 2, "yes": True},
        headers=stack.auth(),
    )
    assert result.as_numpy("y").tolist() == [[1.0] * 4]


def test_the_answer_names_model_and_version(stack: Stack, plain: str, client: Any) -> None:
    answer = client.infer(plain, _plain_inputs(), headers=stack.auth()).get_response()
    assert (answer["model_name"], answer["model_version"]) == (plain, "1")


def test_a_version_is_called_by_its_number(stack: Stack, plain: str, client: Any) -> None:
    result = client.infer(plain, _plain_inputs(), model_version="1", headers=stack.auth())
    assert result.get_response()["model_version"] == "1"
    assert client.is_model_ready(plain, "1", headers=stack.auth())
    assert client.get_model_metadata(plain, "1", headers=stack.auth())["versions"] == ["1"]


def test_health_needs_no_key(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_a_model_is_ready_or_not_there(stack: Stack, plain: str, client: Any) -> None:
    assert client.is_model_ready(plain, headers=stack.auth())
    assert not client.is_model_ready("oip-nobody", headers=stack.auth())


def test_the_server_says_what_it_is(stack: Stack, client: Any) -> None:
    found = client.get_server_metadata(headers=stack.auth())
    assert found["name"] == "tidepool"
    assert {"binary_tensor_data", "parameters"} <= set(found["extensions"])
    assert isinstance(found["version"], str)


def test_a_model_says_what_it_takes(stack: Stack, twins: str, client: Any) -> None:
    found = client.get_model_metadata(twins, headers=stack.auth())
    assert (found["name"], found["versions"]) == (twins, ["1"])
    assert found["platform"] == "onnxruntime_onnx"
    assert found["inputs"] == [
        {"name": "serving_default_x:0", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "scope/block/y:1", "datatype": "INT64", "shape": [-1, 2]},
    ]
    assert [output["name"] for output in found["outputs"]] == [
        "StatefulPartitionedCall:0",
        "out/put:1",
    ]


@pytest.mark.parametrize("version", ["", "9"])
def test_an_unknown_model_is_named_so(stack: Stack, plain: str, client: Any, version: str) -> None:
    model = plain if version else "oip-nobody"
    with pytest.raises(InferenceServerException, match=r"^\[404\] Request for unknown model"):
        client.infer(model, _plain_inputs(), model_version=version, headers=stack.auth())
    with pytest.raises(InferenceServerException, match=r"^\[404\] Request for unknown model"):
        client.get_model_metadata(model, version, headers=stack.auth())


def test_an_error_reads_as_text(stack: Stack, plain: str, client: Any) -> None:
    wrong = [_input(np.ones((1, 5), np.float32), "FP32", binary=True)]
    with pytest.raises(InferenceServerException) as caught:
        client.infer(plain, wrong, headers=stack.auth())
    assert caught.value.status() == "422"
    assert "[-1, 4]" in caught.value.message() or "[-1,4]" in caught.value.message()


@pytest.mark.parametrize("path", ["/v2/models/oip-plain/nothing", "/v3", "/"])
def test_an_unknown_route_is_an_error_in_the_same_form(stack: Stack, path: str) -> None:
    answer = stack.request("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    assert answer.error


def test_many_rows_come_back_in_order(stack: Stack, models_of: dict[str, str], client: Any) -> None:
    array = np.arange(96, dtype=np.float32).reshape(32, 3)
    given = [_input(array, "FP32", binary=True)]
    result = client.infer(models_of["FP32"], given, headers=stack.auth())
    assert result.as_numpy("y").tolist() == array.tolist()


@pytest.mark.parametrize("rows", [0, 33])
def test_rows_beyond_the_model_s_bounds_are_refused_with_them(
    stack: Stack, models_of: dict[str, str], client: Any, rows: int
) -> None:
    given = [_input(np.zeros((rows, 3), np.float32), "FP32", binary=True)]
    with pytest.raises(InferenceServerException, match=rf"^\[422\] {rows} rows .* 1 to 32"):
        client.infer(models_of["FP32"], given, headers=stack.auth())


def test_megabytes_pass_both_ways(stack: Stack, models_of: dict[str, str], client: Any) -> None:
    array = np.arange(4 << 20, dtype=np.uint8).reshape(2, -1)
    given = [_input(array, "UINT8", binary=True)]
    result = client.infer(models_of["UINT8"], given, headers=stack.auth())
    assert np.array_equal(result.as_numpy("y"), array)


def test_calls_at_once_get_their_own_answers(stack: Stack, plain: str) -> None:
    with triton.InferenceServerClient(stack.address, concurrency=8) as client:
        calls = [
            client.async_infer(
                plain,
                [_input(np.full((1, 4), number, np.float32), "FP32", binary=True)],
                headers=stack.auth(),
            )
            for number in range(64)
        ]
        found = [call.get_result().as_numpy("y")[0, 0] for call in calls]
    assert found == list(range(64))


def test_a_client_time_out_is_a_time_out(stack: Stack) -> None:
    stack.publish_engine("oip-sleeper", "sleeper", [("ms", "INT64", [1])], [("y", "INT64", [1])])
    given = [_input(np.int64([2000]), "INT64", binary=True, name="ms")]
    impatient = triton.InferenceServerClient(stack.address, network_timeout=0.2)
    with closing(impatient), pytest.raises(TimeoutError):
        impatient.infer("oip-sleeper", given, headers=stack.auth())


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_the_client_may_compress_its_bodies(
    stack: Stack, client: Any, plain: str, algorithm: str, binary: bool
) -> None:
    array = np.arange(4, dtype=np.float32).reshape(1, 4)
    answer = client.infer(
        plain,
        [_input(array, "FP32", binary=binary)],
        headers=stack.auth(),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert np.array_equal(answer.as_numpy("y"), array)


def test_a_raw_body_is_the_single_input(stack: Stack, plain: str) -> None:
    answer = stack.request(
        "POST",
        f"/v2/models/{plain}/infer",
        np.float32([1, 2, 3, 4, 5, 6, 7, 8]).tobytes(),
        {"inference-header-content-length": "0"},
    )
    assert answer.status == 200, answer.body
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.body[:length])["outputs"]
    assert (output["shape"], output["parameters"]) == ([2, 4], {"binary_data_size": 32})
    assert struct.unpack("<8f", answer.body[length:]) == (1, 2, 3, 4, 5, 6, 7, 8)
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_request_made_by_the_client_s_own_encoder_is_answered(
    stack: Stack, plain: str, client: Any
) -> None:
    body, length = client.generate_request_body(_plain_inputs())
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    answer = stack.request("POST", f"/v2/models/{plain}/infer", body, headers)
    given = answer.headers["inference-header-content-length"]
    parsed = client.parse_response_body(answer.body, header_length=int(given))
    assert parsed.as_numpy("y").tolist() == [[1.0] * 4]


# What a client may do by each extension; all of it is shown elsewhere, here that it is there.
EXTENSIONS = {
    "classification": ("POST", "/v2/models/oip-plain/infer"),
    "model_repository": ("POST", "/v2/repository/index"),
    "model_repository(unload_dependents)": ("POST", "/v2/repository/models/oip-plain/unload"),
    "schedule_policy": ("POST", "/v2/models/oip-plain/infer"),
    "model_configuration": ("GET", "/v2/models/oip-plain/config"),
    "binary_tensor_data": ("POST", "/v2/models/oip-plain/infer"),
    "parameters": ("POST", "/v2/models/oip-plain/infer"),
    "statistics": ("GET", "/v2/models/stats"),
    "logging": ("GET", "/v2/logging"),
    "generate": ("POST", "/v2/models/oip-plain/generate"),
}


def test_no_extension_is_promised_that_is_not_there(stack: Stack, plain: str) -> None:
    for extension in stack.request("GET", "/v2").json()["extensions"]:
        method, path = EXTENSIONS[extension]
        assert stack.request(method, path).status not in (404, 405, 501)


async def _kserve_live(client: Any, url: str, headers: dict[str, str]) -> None:
    assert await client.is_server_live(url)


async def _kserve_ready(client: Any, url: str, headers: dict[str, str]) -> None:
    assert await client.is_server_ready(url)


async def _kserve_model_ready(client: Any, url: str, headers: dict[str, str]) -> None:
    assert await client.is_model_ready(url, "oip-plain", headers=headers)
    assert not await client.is_model_ready(url, "oip-nobody", headers=headers)


async def _kserve_infer(client: Any, url: str, headers: dict[str, str]) -> None:
    for sent in (False, True):
        for wanted in (False, True):
            given = InferInput("x", [1, 4], "FP32")
            given.set_data_from_numpy(np.ones((1, 4), np.float32), binary_data=sent)
            parameters = {"binary_data_output": wanted}
            request = InferRequest("oip-plain", [given], parameters=parameters)
            result = await client.infer(url, request, "oip-plain", headers=dict(headers))
            assert result.outputs[0].as_numpy().tolist() == [[1.0] * 4]
    with pytest.raises(HTTPStatusError, match="Request for unknown model"):
        await client.infer(url, request, "oip-nobody", headers=dict(headers))


async def _kserve_explain(client: Any, url: str, headers: dict[str, str]) -> None:
    with pytest.raises(UnsupportedProtocol):  # of the protocol's first version alone
        await client.explain(url, "oip-plain", {}, headers=headers)


async def _kserve_close(client: Any, url: str, headers: dict[str, str]) -> None:
    await client.close()


KSERVE = {
    "is_server_live": _kserve_live,
    "is_server_ready": _kserve_ready,
    "is_model_ready": _kserve_model_ready,
    "infer": _kserve_infer,
    "explain": _kserve_explain,
    "close": _kserve_close,
}


def test_every_method_of_kserve_s_client_is_accounted_for() -> None:
    found = inspect.getmembers(InferenceRESTClient, callable)
    assert {name for name, _ in found if not name.startswith("_")} == KSERVE.keys()


@pytest.mark.parametrize("name", KSERVE)
async def test_kserve_s_client_is_served(stack: Stack, plain: str, name: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        await KSERVE[name](client, stack.url, stack.auth())
