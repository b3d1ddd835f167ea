"""Every method of tritonclient, unmodified, both kinds: exercised, or named as not spoken here.

The methods are found by introspection, so that one which a new release brings is not overlooked.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.support import models
from tests.support.stack import Stack

MODEL = "triton-plain"
ROW = np.float32([[1, 2, 3, 4]])
KINDS = {"sync": triton.InferenceServerClient, "aio": triton_aio.InferenceServerClient}

Exercise = Callable[[Any, dict[str, str]], Awaitable[None]]


async def _got(found: Any) -> Any:
    """Return what a method of either client gives."""
    return await found if inspect.isawaitable(found) else found


def _inputs(array: np.ndarray = ROW) -> list[Any]:
    given = triton.InferInput("x", list(array.shape), "FP32")
    given.set_data_from_numpy(array)
    return [given]


class _Plugin(triton.InferenceServerClientPlugin):  # type: ignore[misc]
    """Puts the key into every request, as a user's plug-in would."""

    def __init__(self, auth: dict[str, str]) -> None:
        self.auth = auth

    def __call__(self, request: Any) -> None:
        request.headers.update(self.auth)


# --- what is spoken ------------------------------------------------------------------------------


async def _infer(client: Any, auth: dict[str, str]) -> None:
    result = await _got(
        client.infer(
            MODEL,
            _inputs(),
            outputs=[triton.InferRequestedOutput("y", binary_data=True)],
            request_id="7",
            priority=1,
            timeout=5_000_000,
            parameters={"own": "word"},
            request_compression_algorithm="gzip",
            response_compression_algorithm="deflate",
            headers=dict(auth),  # the client writes the call's own headers into it
        )
    )
    assert result.as_numpy("y").tolist() == ROW.tolist()
    assert result.get_response()["id"] == "7"


async def _async_infer(client: Any, auth: dict[str, str]) -> None:
    calls = [client.async_infer(MODEL, _inputs(ROW * n), headers=auth) for n in range(4)]
    assert [call.get_result().as_numpy("y")[0, 0] for call in calls] == [0, 1, 2, 3]


async def _is_server_live(client: Any, auth: dict[str, str]) -> None:
    assert await _got(client.is_server_live()) is True


async def _is_server_ready(client: Any, auth: dict[str, str]) -> None:
    assert await _got(client.is_server_ready()) is True


async def _is_model_ready(client: Any, auth: dict[str, str]) -> None:
    assert await _got(client.is_model_ready(MODEL, headers=auth)) is True
    assert await _got(client.is_model_ready(MODEL, "1", headers=auth)) is True
    assert await _got(client.is_model_ready("nobody", headers=auth)) is False


async def _get_server_metadata(client: Any, auth: dict[str, str]) -> None:
    assert (await _got(client.get_server_metadata(headers=auth)))["name"] == "tidepool"


async def _get_model_metadata(client: Any, auth: dict[str, str]) -> None:
    found = await _got(client.get_model_metadata(MODEL, headers=auth))
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


async def _get_model_config(client: Any, auth: dict[str, str]) -> None:
    found = await _got(client.get_model_config(MODEL, "1", headers=auth))
    assert (found["name"], found["input"][0]["data_type"]) == (MODEL, "TYPE_FP32")


async def _get_inference_statistics(client: Any, auth: dict[str, str]) -> None:
    async def successes(*model: str) -> int:
        found = await _got(client.get_inference_statistics(*model, headers=auth))
        (entry,) = [entry for entry in found["model_stats"] if entry["name"] == MODEL]
        return int(entry["inference_stats"]["success"]["count"])

    before = await successes(MODEL)
    await _got(client.infer(MODEL, _inputs(), headers=auth))
    assert await successes(MODEL) == await successes(MODEL, "1") == await successes() == before + 1


async def _get_model_repository_index(client: Any, auth: dict[str, str]) -> None:
    found = await _got(client.get_model_repository_index(headers=auth))
    (entry,) = [entry for entry in found if entry["name"] == MODEL]
    assert (entry["version"], entry["state"]) == ("1", "READY")


async def _load_model(client: Any, auth: dict[str, str]) -> None:
    await _got(client.load_model(MODEL, headers=auth))
    assert await _got(client.is_model_ready(MODEL, headers=auth))
    with pytest.raises(InferenceServerException, match=r"\[400\].*publish a version"):
        await _got(client.load_model(MODEL, config="{}", headers=auth))


async def _unload_model(client: Any, auth: dict[str, str]) -> None:
    await _got(client.unload_model(MODEL, unload_dependents=True, headers=auth))
    await _infer(client, auth)  # which wakes it
    with pytest.raises(InferenceServerException, match=r"\[404\] failed to unload 'nobody'"):
        await _got(client.unload_model("nobody", headers=auth))


async def _get_log_settings(client: Any, auth: dict[str, str]) -> None:
    assert (await _got(client.get_log_settings(headers=auth)))["log_error"] is True


async def _update_log_settings(client: Any, auth: dict[str, str]) -> None:
    before = await _got(client.get_log_settings(headers=auth))
    found = await _got(client.update_log_settings({"log_verbose_level": 1}, headers=auth))
    assert found == {**before, "log_verbose_level": 1}
    assert await _got(client.update_log_settings(before, headers=auth)) == before


async def _get_trace_settings(client: Any, auth: dict[str, str]) -> None:
    for model in (None, MODEL):
        found = await _got(client.get_trace_settings(model, headers=auth))
        assert found["trace_level"] == ["OFF"]
        texts = [value for name, value in found.items() if name != "trace_level"]
        assert all(isinstance(value, str) for value in texts)


async def _update_trace_settings(client: Any, auth: dict[str, str]) -> None:
    for model in (None, MODEL):
        off = {"trace_level": ["OFF"], "trace_rate": None}
        found = await _got(client.update_trace_settings(model, off, headers=auth))
        assert found["trace_level"] == ["OFF"]
        on = {"trace_level": ["TIMESTAMPS"]}
        with pytest.raises(InferenceServerException, match=r"\[400\].*no tracer"):
            await _got(client.update_trace_settings(model, on, headers=auth))


async def _generate_request_body(client: Any, auth: dict[str, str]) -> None:
    body, length = client.generate_request_body(_inputs(), request_id="7")
    assert body[:length].startswith(b'{"id":"7"')
    # What comes of sending it is `test_oip`'s.


async def _parse_response_body(client: Any, auth: dict[str, str]) -> None:
    body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1.5]}]}'
    assert client.parse_response_body(body).as_numpy("y").tolist() == [1.5]


async def _register_plugin(client: Any, auth: dict[str, str]) -> None:
    client.register_plugin(_Plugin(auth))
    assert isinstance(client.plugin(), _Plugin)
    assert (await _got(client.get_server_metadata()))["name"] == "tidepool"
    client.unregister_plugin()
    with pytest.raises(InferenceServerException, match=r"\[401\]"):
        await _got(client.get_server_metadata())


async def _close(client: Any, auth: dict[str, str]) -> None:
    await _got(client.close())


SPOKEN: dict[str, Exercise] = {
    "infer": _infer,
    "async_infer": _async_infer,
    "is_server_live": _is_server_live,
    "is_server_ready": _is_server_ready,
    "is_model_ready": _is_model_ready,
    "get_server_metadata": _get_server_metadata,
    "get_model_metadata": _get_model_metadata,
    "get_model_config": _get_model_config,
    "get_inference_statistics": _get_inference_statistics,
    "get_model_repository_index": _get_model_repository_index,
    "load_model": _load_model,
    "unload_model": _unload_model,
    "get_log_settings": _get_log_settings,
    "update_log_settings": _update_log_settings,
    "get_trace_settings": _get_trace_settings,
    "update_trace_settings": _update_trace_settings,
    "generate_request_body": _generate_request_body,
    "parse_response_body": _parse_response_body,
    "register_plugin": _register_plugin,
    "plugin": _register_plugin,
    "unregister_plugin": _register_plugin,
    "close": _close,
}

# Shared memory needs client and server on one machine: the edge takes bytes from the socket alone,
# and does not promise the extensions.  Method → arguments, and the error that it gets.
NOT_SPOKEN: dict[str, tuple[Any, ...]] = {
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("region", "/key", 64),
    "unregister_system_shared_memory": (),
    "get_cuda_shared_memory_status": (),
    "register_cuda_shared_memory": ("region", b"handle", 0, 64),
    "unregister_cuda_shared_memory": (),
}
NOT_SPOKEN_ERROR = r"\[404\] Not Found"


def _methods(kind: str) -> set[str]:
    found = inspect.getmembers(KINDS[kind], callable)
    return {name for name, _ in found if not name.startswith("_")}


@pytest.fixture(scope="module")
def model(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish ``y = x``, FP32 [N, 4]."""
    path: Path = models.identity(tmp_path_factory.mktemp("triton") / "p.onnx")
    stack.publish(MODEL, path)
    return MODEL


@pytest.fixture(params=KINDS)
async def client(request: pytest.FixtureRequest, stack: Stack) -> AsyncIterator[Any]:
    """A client of each kind."""
    found = KINDS[request.param](stack.address)
    yield found
    await _got(found.close())


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_is_accounted_for(kind: str) -> None:
    missing = {"async_infer"} if kind == "aio" else set()
    assert _methods(kind) == (SPOKEN.keys() | NOT_SPOKEN.keys()) - missing


@pytest.mark.parametrize("name", SPOKEN)
async def test_a_method_does_what_it_is_for(
    stack: Stack, model: str, client: Any, name: str
) -> None:
    if hasattr(client, name):  # the asyncio client has no `async_infer`
        await SPOKEN[name](client, stack.auth())


@pytest.mark.parametrize("name", NOT_SPOKEN)
async def test_a_method_that_is_not_spoken_gets_an_error(
    stack: Stack, model: str, client: Any, name: str
) -> None:
    with pytest.raises(InferenceServerException, match=NOT_SPOKEN_ERROR):
        await _got(getattr(client, name)(*NOT_SPOKEN[name], headers=stack.auth()))


async def test_an_input_in_shared_memory_is_refused(stack: Stack, model: str, client: Any) -> None:
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_shared_memory("region", 16)
    with pytest.raises(InferenceServerException, match=r"\[400\].*shared memory is not spoken"):
        await _got(client.infer(MODEL, [given], headers=stack.auth()))
