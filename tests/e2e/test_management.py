"""What clients of Triton ask beside calls: config, statistics, the repository; real processes."""

from __future__ import annotations

import json
import secrets
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import models
from tests.support.stack import Answer, Stack, until

ROW = {"x": ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])}
TIMES = {
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
    "cache_hit", "cache_miss",
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish ``y = x``, FP32 [N, 4]."""
    stack.publish("manage-plain", models.identity(tmp_path_factory.mktemp("m") / "p.onnx"))
    return "manage-plain"


def _fresh(name: str) -> str:
    """Return a model's name that no earlier try of the test has counted anything under."""
    return f"manage-{name}-{secrets.token_hex(3)}"


def _stats(stack: Stack, path: str) -> dict[str, Any]:
    answer = stack.request("GET", f"/v2/models/{path}/stats")
    assert answer.status == 200, answer.body
    (found,) = answer.json()["model_stats"]
    assert isinstance(found, dict)
    return found


# --- config --------------------------------------------------------------------------------------


def test_the_config_is_triton_s(stack: Stack, plain: str) -> None:
    found = stack.request("GET", f"/v2/models/{plain}/config").json()
    assert (found["name"], found["platform"], found["backend"]) == (
        plain,
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert found["max_batch_size"] == 32
    # Without the batch, which max_batch_size stands for.
    assert found["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert found["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}]
    policy = found["dynamic_batching"]["default_queue_policy"]
    assert policy["default_timeout_microseconds"] == 10_000_000
    assert [group["count"] for group in found["instance_group"]] == [1]
    assert found["response_cache"] == {"enable": True}
    assert found["parameters"] == {"precision": {"string_value": "fp32"}}


def test_a_model_that_is_never_batched_has_no_batching(stack: Stack) -> None:
    stack.publish_engine("manage-one", "sleeper", [("ms", "INT64", [1])], [("y", "BYTES", [-1])])
    found = stack.request("GET", "/v2/models/manage-one/config").json()
    assert (found["max_batch_size"], "dynamic_batching" in found) == (0, False)
    assert found["input"] == [{"name": "ms", "data_type": "TYPE_INT64", "dims": [1]}]
    assert found["output"] == [{"name": "y", "data_type": "TYPE_STRING", "dims": [-1]}]


def test_the_endpoint_s_own_bound_is_in_its_config(stack: Stack, plain: str) -> None:
    stack.edit_endpoint(plain, batch={"rows_max": 5}, deadline_ms=700)
    try:
        found = stack.request("GET", f"/v2/models/{plain}/config").json()
        assert found["max_batch_size"] == 5
        policy = found["dynamic_batching"]["default_queue_policy"]
        assert policy["default_timeout_microseconds"] == 700_000
        # A version that is called by its number goes by the model's bound.
        by_version = stack.request("GET", f"/v2/models/{plain}/versions/1/config").json()
        assert by_version["max_batch_size"] == 32
    finally:
        stack.edit_endpoint(plain, batch={"rows_max": 32}, deadline_ms=10_000)


# --- statistics ----------------------------------------------------------------------------------


def test_statistics_count_what_was_done(stack: Stack, tmp_path: Path) -> None:
    model = _fresh("counted")
    stack.publish(model, models.identity(tmp_path / "c.onnx"))
    before = _stats(stack, model)
    assert before["inference_stats"].keys() == TIMES
    assert before["inference_stats"]["queue"] == {"count": 0, "ns": 0}
    rows3 = {"x": ("FP32", [3, 4], [0.0] * 12)}
    for inputs in (ROW, ROW, rows3):
        assert stack.infer(model, inputs).status == 200
    assert stack.infer(model, {"x": ("FP32", [1, 5], [0.0] * 5)}).status == 422
    after = _stats(stack, model)
    counts = {name: value["count"] for name, value in after["inference_stats"].items()}
    assert counts == {
        **dict.fromkeys(TIMES, 2),
        "success": 3,
        "queue": 3,
        "fail": 1,
        "cache_hit": 1,
    }
    assert (after["inference_count"], after["execution_count"]) == (4, 2)
    assert [b["batch_size"] for b in after["batch_stats"]] == [1, 3]
    computed = after["inference_stats"]
    for phase in ("success", "fail", "compute_input", "compute_infer", "compute_output"):
        assert 0 < computed[phase]["ns"] < 60e9
    assert sum(b["compute_infer"]["ns"] for b in after["batch_stats"]) == pytest.approx(
        computed["compute_infer"]["ns"], abs=10
    )


def test_calls_that_share_a_batch_are_one_execution(stack: Stack) -> None:
    model = _fresh("batch")
    tensors = ([("ms", "INT64", [-1, 1])], [("y", "INT64", [-1, 1])])
    stack.publish_engine(model, "sleeper", *tensors, rows_max=8)

    def call() -> None:
        stack.infer(model, {"ms": ("INT64", [1, 1], [80])})

    threads = [threading.Thread(target=call) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = _stats(stack, model)
    assert found["inference_count"] == 9
    assert found["execution_count"] < 9
    runs = {b["batch_size"]: b["compute_infer"]["count"] for b in found["batch_stats"]}
    assert max(runs) > 1
    assert sum(size * count for size, count in runs.items()) == 9
    assert sum(runs.values()) == found["execution_count"]


def test_a_version_and_all_models_have_statistics(stack: Stack, plain: str) -> None:
    stack.infer(plain, ROW, version="1")
    assert _stats(stack, f"{plain}/versions/1")["version"] == "1"
    everything = stack.request("GET", "/v2/models/stats").json()["model_stats"]
    assert (plain, "1") in [(entry["name"], entry["version"]) for entry in everything]


def test_all_statistics_are_those_of_what_the_key_may_call(stack: Stack, plain: str) -> None:
    key = stack.make_key(f"infer:{plain}")
    for path in ("/v2/models/stats", f"/v2/models/{plain}/stats"):
        found = stack.request("GET", path, key=key).json()["model_stats"]
        assert {entry["name"] for entry in found} == {plain}
    other = stack.make_key("infer:nobody")
    assert stack.request("GET", f"/v2/models/{plain}/stats", key=other).status == 403
    assert stack.request("GET", f"/v2/models/{plain}/config", key=other).status == 403
    assert stack.request("GET", "/v2/models/stats", key=other).json() == {"model_stats": []}


def test_statistics_are_the_sum_of_all_edges(wide_stack: Stack, tmp_path: Path) -> None:
    stack = wide_stack
    model = _fresh("wide")
    stack.publish(model, models.identity(tmp_path / "w.onnx"))
    edges = set()
    for count in range(1, 41):  # a connection each: the kernel spreads them over both
        answer = stack.infer(model, {"x": ("FP32", [1, 4], [float(count)] * 4)})
        edges.add(answer.headers["x-request-id"].partition("-")[0])
    assert len(edges) == 2
    until(
        lambda: _stats(stack, model)["inference_stats"]["queue"]["count"] == 40,
        what="both edges' counts are in one answer",
    )


# --- perf_analyzer -------------------------------------------------------------------------------


def test_perf_analyzer_s_sequence(stack: Stack, tmp_path: Path) -> None:
    """The requests of perf_analyzer 2.49 as it sends them, and the fields that it reads."""
    model = "manage-perf"
    stack.publish(model, models.identity(tmp_path / "p.onnx"))
    path = f"/v2/models/{model}"
    metadata = stack.request("GET", path, headers={"accept": "*/*"}).json()
    config = stack.request("GET", f"{path}/config").json()
    assert config["max_batch_size"] > 0
    assert "sequence_batching" not in config
    assert "ensemble_scheduling" not in config
    assert config["model_transaction_policy"]["decoupled"] is False
    assert config["response_cache"]["enable"] is True
    (given,), (said,) = metadata["inputs"], config["input"]
    assert (given["name"], given["shape"][1:]) == (said["name"], said["dims"])
    assert said["data_type"] == f"TYPE_{given['datatype']}"
    extensions = stack.request("GET", "/v2").json()["extensions"]
    assert "statistics" in extensions

    def stats() -> dict[str, Any]:
        (entry,) = stack.request("GET", f"{path}/stats").json()["model_stats"]
        return {**entry["inference_stats"], "inferences": entry["inference_count"]}

    before = stats()
    for number in range(5):
        answer = _as_perf_analyzer(stack, path, number)
        assert answer.status == 200, answer.body
    after = stats()
    assert after["queue"]["count"] == before["queue"]["count"] + 5
    assert after["success"]["count"] == before["success"]["count"] + 5
    assert after["inferences"] == before["inferences"] + 5
    for phase in ("compute_input", "compute_infer", "compute_output", "success"):
        assert after[phase]["ns"] > before[phase]["ns"]
    unknown = stack.request("GET", "/v2/models/manage-nobody")
    assert unknown.error.startswith("Request for unknown model")
    assert stack.infer("manage-nobody", ROW).error.startswith("Request for unknown model")


def _as_perf_analyzer(stack: Stack, path: str, number: int) -> Answer:
    head = (
        b'{"id":"","inputs":[{"name":"x","datatype":"FP32","shape":[1,4],'
        b'"parameters":{"binary_data_size":16}}],'
        b'"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
    )
    headers = {
        "accept": "*/*",
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    body = head + np.full(4, number, np.float32).tobytes()
    return stack.request("POST", f"{path}/infer", body, headers)


# --- the repository ------------------------------------------------------------------------------


def _index(stack: Stack, body: str = "", key: str = "") -> dict[str, dict[str, Any]]:
    answer = stack.request("POST", "/v2/repository/index", body, key=key)
    assert answer.status == 200, answer.body
    return {entry["name"]: entry for entry in answer.json()}


def test_the_index_names_every_version(stack: Stack, plain: str) -> None:
    assert _index(stack)[plain] == {
        "name": plain,
        "version": "1",
        "state": "READY",
        "reason": "",
    }


def test_the_index_says_why_a_model_is_not_ready(stack: Stack) -> None:
    tensors = ([("x", "INT64", [1])], [("y", "INT64", [1])])
    stack.publish_engine("manage-broken", "sleeper", *tensors)
    stack.publish_engine("manage-broken", "unloadable", *tensors)
    broken = {"name": "stable", "model": "manage-broken", "version": "2", "weight": 100}
    stack.edit_endpoint("manage-broken", variants=[broken])
    entry = until(
        lambda: (e := _index(stack).get("manage-broken")) and e["state"] == "UNAVAILABLE" and e,
        what="the load has failed",
    )
    assert "cannot be loaded" in entry["reason"]
    assert "manage-broken" not in _index(stack, '{"ready": true}')
    assert "manage-broken" in _index(stack, '{"ready": false}')
    answer = stack.request("POST", "/v2/repository/models/manage-broken/load")
    assert answer.status == 503
    assert answer.error.startswith("failed to load 'manage-broken'")


def test_the_index_is_of_what_the_key_may_call(stack: Stack, plain: str) -> None:
    assert _index(stack, key=stack.make_key(f"infer:{plain}")).keys() == {plain}


def _ready(stack: Stack, model: str) -> tuple[int, str]:
    answer = stack.request("GET", f"/v2/models/{model}/ready")
    return answer.status, answer.headers["x-tidepool-state"]


def test_unload_lets_an_endpoint_sleep_until_a_call_wakes_it(stack: Stack, tmp_path: Path) -> None:
    model = f"manage-sleep-{secrets.token_hex(3)}"  # another one in each try
    stack.publish(model, models.identity(tmp_path / "s.onnx"))
    loads = stack.engine(model)[0]["loads"]
    body = '{"parameters": {"unload_dependents": false}}'
    answer = stack.request("POST", f"/v2/repository/models/{model}/unload", body)
    assert (answer.status, answer.body) == (200, b"")
    until(lambda: stack.engine(model) == [], what="its memory is given back")
    # It would never sleep by its policy; that it was unloaded is no first load that is due.
    assert _ready(stack, model) == (200, "asleep")
    assert _index(stack)[model]["reason"] == "unloaded by request"
    assert stack.infer(model, ROW).status == 200
    assert stack.engine(model)[0]["loads"] == loads + 1
    until(lambda: _ready(stack, model) == (200, "warm"), what="it is warm again")


def test_what_was_unloaded_stays_so_while_the_controller_plans(
    stack: Stack, tmp_path: Path
) -> None:
    model = f"manage-stays-{secrets.token_hex(3)}"
    stack.publish(model, models.identity(tmp_path / "s.onnx"))
    assert stack.request("POST", f"/v2/repository/models/{model}/unload").status == 200
    # Documents, routes and heartbeats come, each of which makes the controller plan anew.
    stack.publish("manage-other", models.identity(tmp_path / "o.onnx"))
    assert stack.engine(model) == []
    assert _ready(stack, model) == (200, "asleep")


def test_load_warms_what_was_unloaded(stack: Stack, tmp_path: Path) -> None:
    model = "manage-load"
    stack.publish(model, models.identity(tmp_path / "l.onnx"))
    for _ in range(2):  # soon after one another too
        assert stack.request("POST", f"/v2/repository/models/{model}/unload").status == 200
        answer = stack.request("POST", f"/v2/repository/models/{model}/load", "{}")
        assert (answer.status, answer.body) == (200, b"")
        assert _ready(stack, model) == (200, "warm")
        assert [engine["state"] for engine in stack.engine(model)] == ["warm"]


def test_what_another_endpoint_serves_is_not_unloaded(stack: Stack, plain: str) -> None:
    stack.set_endpoint(
        {
            "endpoint": "manage-shared",
            "variants": [{"name": "stable", "model": plain, "version": "1", "weight": 100}],
        }
    )
    assert stack.request("POST", "/v2/repository/models/manage-shared/unload").status == 200
    assert [engine["state"] for engine in stack.engine(plain)] == ["warm"]


@pytest.mark.parametrize("what", ["load", "unload"])
def test_an_unknown_endpoint_is_neither_loaded_nor_unloaded(stack: Stack, what: str) -> None:
    for name in ("manage-nobody", "..%2fkeys.json", "A", "%00"):
        answer = stack.request("POST", f"/v2/repository/models/{name}/{what}")
        assert answer.status == 404
        assert answer.error


BAD_PARAMETERS = {
    "config": ({"config": "{}"}, "publish"),
    "file": ({"file:1/model.onnx": "AAAA"}, "publish"),
    "unknown": ({"more": 1}, "not known"),
    "kind": ({"unload_dependents": "yes"}, ""),
    "list": ([], ""),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
@pytest.mark.parametrize("what", ["load", "unload"])
def test_a_parameter_that_would_change_what_is_served_is_refused(
    stack: Stack, plain: str, what: str, name: str
) -> None:
    parameters, said = BAD_PARAMETERS[name]
    body = json.dumps({"parameters": parameters})
    answer = stack.request("POST", f"/v2/repository/models/{plain}/{what}", body)
    assert answer.status == 400
    assert said in answer.error
    assert _ready(stack, plain) == (200, "warm")


@pytest.mark.parametrize(
    "body", ["[]", "7", "{", '{"more": 1}', '{"ready": 1}', "\xff", "[" * 5000]
)
@pytest.mark.parametrize("route", ["index", "models/manage-plain/load"])
def test_a_body_that_is_no_object_is_refused(
    stack: Stack, plain: str, route: str, body: str
) -> None:
    answer = stack.request("POST", f"/v2/repository/{route}", body.encode("latin-1"))
    assert answer.status == 400
    assert answer.error


@pytest.mark.parametrize("what", ["load", "unload"])
def test_loading_and_unloading_need_an_admin(stack: Stack, plain: str, what: str) -> None:
    key = stack.make_key("infer:*")
    path = f"/v2/repository/models/{plain}/{what}"
    assert stack.request("POST", path, key=key).status == 403
    assert stack.request("POST", path, key=None).status == 401
    assert _ready(stack, plain) == (200, "warm")


def test_an_engine_is_not_taken_from_under_a_call(stack: Stack) -> None:
    model = _fresh("busy")
    diary = stack.publish_observed(model)
    results: list[int] = []
    call = threading.Thread(
        target=lambda: results.append(stack.infer_observed(model, 1, delay_ms=800).status)
    )
    call.start()
    until(lambda: diary.count("run"), what="the call runs")
    assert stack.request("POST", f"/v2/repository/models/{model}/unload").status == 200
    call.join()
    assert results == [200]
    assert stack.engine(model) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/repository/index"),
        ("GET", "/v2/repository/models/manage-plain/load"),
        ("POST", "/v2/models/manage-plain/stats"),
        ("DELETE", "/v2/models/manage-plain/config"),
        ("POST", "/v2/models/stats"),
    ],
)
def test_another_method_is_not_allowed(stack: Stack, plain: str, method: str, path: str) -> None:
    answer = stack.request(method, path)
    assert (answer.status, answer.error) == (405, "Method Not Allowed")
    assert answer.headers["allow"]
