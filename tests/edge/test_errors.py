"""What a refusal says, and to whom."""

from __future__ import annotations

import pytest

from edge import errors
from edge.errors import Refusal, Unavailable, WorkerLost, quote


def test_text_is_cut_to_300_characters() -> None:
    assert len(errors.BadRequest("x" * 1000).text) == 300


@pytest.mark.parametrize("value", ["x" * 10_000, "\x00" * 10_000, "é", "'\"", "\ud800", "\n" * 79])
def test_quote_is_short_and_printable(value: str) -> None:
    assert len(quote(value)) <= 80
    assert quote(value).isprintable()


@pytest.mark.parametrize(
    ("retry_after_s", "seconds", "milliseconds"),
    [(0.0, "1", "1"), (0.25, "1", "250"), (1.2, "2", "1200"), (120.0, "120", "120000")],
)
def test_unavailable_says_when_to_come_back(
    retry_after_s: float, seconds: str, milliseconds: str
) -> None:
    headers = dict(Unavailable("later", retry_after_s=retry_after_s).headers)
    assert headers == {"retry-after": seconds, "retry-after-ms": milliseconds}


@pytest.mark.parametrize("status", [400, 404, 422, 500, 502, 503, 504])
def test_worker_may_refuse_with_these_statuses(status: int) -> None:
    refusal = Refusal.of(status, "why", 1500)
    assert (refusal.status, refusal.text) == (status, "why")


@pytest.mark.parametrize("status", [0, 200, 401, 403, 429, 999])
def test_worker_with_another_status_is_at_fault(status: int) -> None:
    assert type(Refusal.of(status, "why")) is WorkerLost


def test_unauthorized_names_the_scheme() -> None:
    assert errors.Unauthorized("who?").headers == (("www-authenticate", "Bearer"),)
