"""The protocol's published OpenAPI document against a running server, request by generated request.

The document is the Open Inference Protocol's own, as it lies beside the checkout.  What it does not
say and this server rightly does is written down in `amended`, so that nothing else may differ.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.support import models
from tests.support.stack import REPOSITORY, Stack

DOCUMENT = REPOSITORY.parent / "shared" / "suites" / "oip_rest_fixed.yaml"
MODEL = "schema-plain"
# What each refusal is for is in the README; the document knows 200 and 400 alone.
REFUSALS = (
    "400",
    "401",
    "403",
    "404",
    "405",
    "411",
    "413",
    "415",
    "422",
    "429",
    "431",
    "503",
    "504",
)
EXAMPLES_MAX = 25  # of each operation and mode
load_all_checks()
# A body that fits the document need not fit the model's signature; keys have tests of their own.
EXCLUDED = [CHECKS.get_one(name) for name in ("positive_data_acceptance", "ignored_auth")]


def amended(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with what this server does beyond it.

    - Refusals have more statuses than 400, always with the protocol's error object.  A path
      without parameters is there, and is refused at most for its key.
    - `null` for an optional field is as if it were absent, as in Triton.
    - A shape has at most 16 dimensions of at most 31 bits, none negative.
    - A parameter is a string, a number or a boolean, as the protocol's text says.
    """
    schemas = document["components"]["schemas"]
    error = {"$ref": "#/components/schemas/inference_error_response"}
    schemas["inference_error_response"].update(required=["error"], additionalProperties=False)
    for path in document["paths"].values():
        for operation in (path[method] for method in ("get", "post") if method in path):
            for status in REFUSALS if "parameters" in path else ("401",):
                operation["responses"][status] = {
                    "description": "Refused",
                    "content": {"application/json": {"schema": error}},
                }
        for parameter in path.get("parameters", ()):
            known = {"MODEL_NAME": [MODEL, "nobody"], "MODEL_VERSION": ["1", "2"]}
            parameter["schema"]["enum"] = known[parameter["name"]]
    schemas["parameters"].update(
        nullable=True,
        additionalProperties={
            "anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]
        },
    )
    request = schemas["inference_request"]["properties"]
    request["id"]["nullable"] = True
    request["outputs"]["nullable"] = True
    dim = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    schemas["request_input"]["properties"]["shape"].update(items=dim, maxItems=16)
    # Names that are there, so that more than refusals is seen.
    schemas["request_input"]["properties"]["name"]["enum"] = ["x"]
    schemas["request_input"]["properties"]["datatype"]["enum"] = ["FP32"]
    schemas["request_output"]["properties"]["name"]["enum"] = ["y"]
    return document


def _operations() -> list[Any]:
    if not DOCUMENT.exists():  # it lies beside the checkout, or it does not
        return []
    schema = schemathesis.openapi.from_dict(amended(yaml.safe_load(DOCUMENT.read_bytes())))
    return [found.ok() for found in schema.get_all_operations()]


@pytest.fixture(scope="module")
def plain(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Publish ``y = x``, FP32 [N, 4]."""
    stack.publish(MODEL, models.identity(tmp_path_factory.mktemp("schema") / "p.onnx"))


def _is_variable(operation: Any) -> bool:
    return bool(operation.path_parameters) or bool(operation.body)


if OPERATIONS := _operations():
    CASES = [
        pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
        for operation in OPERATIONS
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or _is_variable(operation)
    ]

    @pytest.mark.parametrize(("operation", "mode"), CASES)
    def test_the_server_does_what_the_document_says(
        stack: Stack, plain: None, operation: Any, mode: GenerationMode
    ) -> None:
        @given(operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES_MAX,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def check(case: Any) -> None:
            case.call_and_validate(
                base_url=stack.url, headers=stack.auth(), excluded_checks=EXCLUDED
            )

        check()

    @pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
    def test_a_good_request_gets_the_document_s_answer(
        stack: Stack, plain: None, operation: Any
    ) -> None:
        given_: dict[str, Any] = {"path_parameters": {"MODEL_NAME": MODEL, "MODEL_VERSION": "1"}}
        if operation.body:
            row = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2, 3, 4]}
            given_ |= {"body": {"id": "42", "inputs": [row]}, "media_type": "application/json"}
        answer = operation.Case(**given_).call_and_validate(
            base_url=stack.url, headers=stack.auth(), excluded_checks=EXCLUDED
        )
        assert answer.status_code == 200
