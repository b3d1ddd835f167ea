"""A version published in fp16: served at once, described, and cached by what is promised."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support import models
from tests.support.stack import Answer, Stack

MODEL, EXACT = "half", "half-exact"
INPUTS = {"x": ("FP32", [1, 16], [0.5] * 16)}


@pytest.fixture(scope="module")
def half(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A stack with one fp16 version and two endpoints of it; one wishes for fp32."""
    path = models.mlp(tmp_path_factory.mktemp("half") / "m.onnx")
    assert stack.cli("publish", MODEL, str(path), "--precision", "fp16") == "1"
    variants = [{"name": "a", "model": MODEL, "version": "1", "weight": 100}]
    wish = {"precision": "fp32"}
    stack.set_endpoint({"endpoint": EXACT, "variants": variants, "cache": {}, "engine": wish})
    for name in (MODEL, EXACT):
        stack.until_ready(name)
    return stack


def precision_of(stack: Stack, name: str) -> Any:
    return stack.request("GET", f"/v2/models/{name}/config").json()["parameters"]["precision"]


def test_config_says_what_is_promised(half: Stack) -> None:
    assert precision_of(half, MODEL) == {"string_value": "fp16"}
    assert precision_of(half, EXACT) == {"string_value": "fp32"}
    assert precision_of(half, f"{MODEL}/versions/1") == {"string_value": "fp16"}


def test_endpoints_of_two_precisions_share_no_answer(half: Stack) -> None:
    def state(name: str) -> str:
        answer: Answer = half.infer(name, INPUTS)
        assert answer.status == 200, answer.body
        return re.sub(r"; ttl=\d+", "", answer.headers["cache-status"])

    assert [state(MODEL) for _ in range(2)] == ["tidepool; fwd=uri-miss", "tidepool; hit"]
    assert [state(EXACT) for _ in range(2)] == ["tidepool; fwd=uri-miss", "tidepool; hit"]


def test_wish_counts_from_when_it_is_written(half: Stack) -> None:
    half.edit_endpoint(MODEL, engine={"precision": "fp32"})
    try:
        assert precision_of(half, MODEL) == {"string_value": "fp32"}
    finally:
        half.edit_endpoint(MODEL, engine={})
