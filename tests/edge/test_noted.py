"""Templates of paths: a line of the log never has a path as it was sent."""

from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from edge.noted import template


async def nothing(request: Request) -> Response:
    return Response()


ROUTES = [
    Route("/v2", nothing),
    Route("/v2/models/{model}", nothing),
    Route("/v2/models/{model}/versions/{version}/ready", nothing),
    Mount("/admin", routes=[Route("/keys/{id}", nothing, methods=["GET", "DELETE"])]),
]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v2", "GET /v2"),
        ("GET", "/v2/models/secret", "GET /v2/models/{model}"),
        ("GET", "/v2/models/a/versions/3/ready", "GET /v2/models/{model}/versions/{version}/ready"),
        ("POST", "/v2", "POST /v2"),
        ("DELETE", "/admin/keys/k1", "DELETE /admin/keys/{id}"),
        ("GET", "/admin/secret", "unmatched"),
        ("GET", "/secret", "unmatched"),
        ("S3CR3T", "/v2", "unmatched"),
    ],
)
def test_path_is_shown_as_its_template(method: str, path: str, expected: str) -> None:
    assert template(ROUTES, method, path) == expected
