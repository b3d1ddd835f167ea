"""NaN and infinity leave as bits to who takes bits, and never as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.models import identity
from tests.support.stack import Answer, Stack

MODEL = "non-finite"
VALUES = np.array([1.0, np.nan, np.inf, -np.inf], np.float32)


def ask(stack: Stack, *, binary: bool) -> Answer:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": 16}}],
            "parameters": {"binary_data_output": binary},
        }
    ).encode()
    headers = {"inference-header-content-length": str(len(head))}
    return stack.request("POST", f"/v2/models/{MODEL}/infer", head + VALUES.tobytes(), headers)


@pytest.mark.rule("F19")
def test_output_that_is_not_finite_is_the_models_failure_in_json_every_time(
    stack: Stack, tmp_path: Path
) -> None:
    stack.publish(MODEL, identity(tmp_path / "m.onnx"))  # it has a cache, for the bits
    labels = {"endpoint": MODEL, "status": "500"}
    failed = stack.metric("tidepool_requests_total", **labels)
    for _ in range(2):
        answer = ask(stack, binary=False)
        assert answer.status == 500
        assert answer.error.startswith("non_finite_output")
        assert b"NaN" not in answer.body.replace(b"holds NaN or infinity", b"")
    assert stack.metric("tidepool_requests_total", **labels) == failed + 2
    bits = ask(stack, binary=True)
    assert bits.status == 200
    assert bits.body.endswith(VALUES.tobytes())
