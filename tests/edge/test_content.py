"""Which form a body has and which the answer gets, by the headers that clients send."""

from __future__ import annotations

import pytest

from edge.content import answers_msgpack, is_msgpack, refuse_msgpack
from edge.errors import Unsupported


@pytest.mark.rule("SEC-13")
@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, False),
        ("application/json", False),
        ("application/json; charset=utf-8", False),
        ('Application/JSON;charset="UTF-8"', False),
        ("application/octet-stream", False),
        ("application/x-www-form-urlencoded", False),  # curl, when nobody said what it is
        ("application/msgpack", True),
        ("application/x-msgpack", True),
        ("application/vnd.msgpack", True),
        ("application/msgpack; v=1", True),
    ],
)
def test_known_types_are_read(content_type: str | None, expected: bool) -> None:
    assert is_msgpack(content_type) is expected


@pytest.mark.rule("SEC-13")
@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/jsonp",
        "application/json, application/json",
        "application/json; charset=utf-16",
        "\xff",
        "application/" + "a" * 30_000,
    ],
)
def test_other_types_are_refused_with_those_that_are_taken(content_type: str) -> None:
    with pytest.raises(Unsupported, match="application/json") as caught:
        is_msgpack(content_type)
    assert caught.value.status == 415
    assert dict(caught.value.headers)["accept-post"].endswith("application/msgpack")


def test_where_only_json_is_spoken_msgpack_is_refused() -> None:
    refuse_msgpack("application/json")
    with pytest.raises(Unsupported, match="use application/json, or none"):
        refuse_msgpack("application/msgpack")


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "",
        "text/html",
        "application/*",
        "application/json, application/msgpack",
        "application/msgpack;q=0.5, application/json;q=0.5",
        "application/msgpack;q=2, application/json;q=nan",
        "a" * 30_000,
    ],
)
def test_without_a_preference_the_answer_is_as_the_request(
    accept: str | None, is_packed: bool
) -> None:
    assert answers_msgpack(accept, is_packed) is is_packed


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/msgpack", True),
        ("application/x-msgpack, text/html", True),
        ("application/msgpack, */*;q=0.1", True),
        ("application/json;q=0.8, application/msgpack;q=0.9", True),
        ("application/json", False),
        ("application/octet-stream", False),
        ("application/json, */*;q=0.5", False),
        ("application/msgpack;q=0.8, application/json", False),
        ("application/msgpack;q=0, */*", False),
        ("APPLICATION/JSON ; q=1.0 , application/msgpack ; q=0.1", False),
    ],
)
def test_the_answer_is_what_is_preferred(accept: str, is_packed: bool, expected: bool) -> None:
    assert answers_msgpack(accept, is_packed) is expected
