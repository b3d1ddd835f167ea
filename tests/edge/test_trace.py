"""What a request's trace says: its phases in ms, and the context of whoever sent it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.dispatching.calls import Answer
from edge.trace import Trace, server_timing, trace_context

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("given_", [f"00-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-00-more"])
def test_trace_and_span_of_the_caller_are_read(given_: str) -> None:
    assert trace_context(given_) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "given_",
    [
        None, "", "00", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}", f" 00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01x",
    ],
)  # fmt: skip
def test_context_that_is_none_is_left_out(given_: str | None) -> None:
    assert trace_context(given_) == ("", "")


@given(st.text(max_size=80))
def test_whatever_is_sent_only_ids_come_out(text: str) -> None:
    trace_id, span_id = trace_context(text)
    assert re.fullmatch("([0-9a-f]{32})?", trace_id)
    assert re.fullmatch("([0-9a-f]{16})?", span_id)


def trace(*, answer: Answer | None = None, dispatched: bool = False, cache_s: float = 0) -> Trace:
    made = Trace("id", 10.0, auth_s=1e-6, parse_s=2e-5, cache_s=cache_s, respond_s=4e-5)
    made.answer, made.dispatched, made.ended_s = answer, dispatched, 10.004
    return made


def test_server_timing_names_the_phases_that_happened() -> None:
    ran = Answer([], 1000, 2500, 4)
    assert server_timing(trace(answer=ran, dispatched=True, cache_s=3e-6)) == (
        "auth;dur=0.001, parse;dur=0.020, cache;dur=0.003, queue;dur=1.000, infer;dur=2.500, "
        "respond;dur=0.040, total;dur=4.000"
    )
    assert server_timing(trace(answer=ran, dispatched=True)) == (
        "auth;dur=0.001, parse;dur=0.020, queue;dur=1.000, infer;dur=2.500, respond;dur=0.040, "
        "total;dur=4.000"
    )
    assert server_timing(trace(answer=ran, cache_s=3e-6)) == (
        "auth;dur=0.001, parse;dur=0.020, cache;dur=0.003, respond;dur=0.040, total;dur=4.000"
    )
    assert server_timing(trace()) == "auth;dur=0.001, total;dur=4.000"
