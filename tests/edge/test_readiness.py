"""When a version counts as ready: what answers now, or wakes inside the deadline."""

from __future__ import annotations

import pytest

from edge.readiness import is_ready, state_of
from pool.wire.control import UNLOADED, EngineRoute


def route(state: str, wake_ms: int = 0, detail: str = "", workers: int = 1) -> EngineRoute:
    names = tuple(f"w{n}" for n in range(workers))
    warm = names if state == "warm" else ()
    return EngineRoute("m", "1", warm, names, state, detail, wake_ms)


@pytest.mark.parametrize(
    ("found", "state", "ready"),
    [
        (route("warm"), "warm", True),
        (route("asleep"), "asleep", True),  # how long a wake takes is not known yet
        (route("asleep", wake_ms=1000), "asleep", True),
        (route("asleep", wake_ms=1001), "asleep", False),  # its calls would be refused
        (route("asleep", detail=UNLOADED), "asleep", True),
        (route("asleep", workers=0), "no_worker", False),
        (route("loading"), "loading", False),  # the first time
        (route("loading", wake_ms=800), "loading", True),  # a wake under way
        (route("loading", wake_ms=3000), "loading", False),
        (route("failed", wake_ms=10, detail="broken"), "failed", False),
        (None, "unknown", False),
    ],
)
def test_ready_is_what_would_answer_inside_the_deadline(
    found: EngineRoute | None, state: str, ready: bool
) -> None:
    assert (state_of(found), is_ready(found, 1.0)) == (state, ready)
