"""What a spec's scale means in a fleet: which words are said, and when none are."""

from __future__ import annotations

import msgspec
import pytest

from registry_sync.documents import EndpointSpec, Scale, Variant
from registry_sync.scale_advice import fleet_of, warnings

FAR = {"worker": "gpu-0-0", "address": ""}
NEAR = {"worker": "n-0", "address": "unix:/run/n-0.sock"}
HELPER = {"id": "f-0", "fallback": True}


def said(
    scale: Scale,
    *,
    places: tuple[dict[str, str], ...] = (FAR,),
    workers: tuple[dict[str, object], ...] = (),
    up_min: int = 0,
    start_s: float | None = 240.0,
    deadline_ms: int = 10_000,
) -> str:
    spec = EndpointSpec(
        "m", (Variant("stable", "m", "1", 100.0),), scale=scale, deadline_ms=deadline_ms
    )
    nodes = [{"places": places, "up_min": up_min, "more": 1}] if places else []
    status = {"workers": workers, "nodes": nodes, "instance_start_s": start_s, "edges": []}
    return "\n".join(warnings(spec, fleet_of(msgspec.json.encode(status))))


def test_zero_replicas_in_a_pool_that_goes_to_zero_says_how_long_calls_are_refused() -> None:
    text = said(Scale())
    assert text.startswith("$.scale.replicas_min: 0 without a fallback")
    assert "takes about 4 min; until then calls are refused with 503" in text
    assert "deadline of 10 s" in text
    assert "scale.fallback: cpu" in text
    assert "takes about 75 s" in said(Scale(), start_s=75.0)
    assert "takes minutes" in said(Scale(), start_s=None)
    assert "calls wait for it up to their deadline of 600 s" in said(Scale(), deadline_ms=600_000)


def test_fallback_without_a_fallback_worker_is_named() -> None:
    text = said(Scale(fallback="cpu"))
    assert text.startswith("$.scale.fallback: cpu, but no fallback worker is there")
    assert "tidepool pool --fallback" in text
    assert not said(Scale(fallback="cpu"), workers=(HELPER,))


@pytest.mark.parametrize(
    ("scale", "more"),
    [
        (Scale(replicas_min=1), {}),
        (Scale(), {"up_min": 1}),
        (Scale(), {"places": ()}),
        (Scale(), {"places": (FAR, NEAR)}),  # a call starts that one
        (Scale(), {"workers": ({"id": "other", "fallback": False},)}),  # up for good
    ],
)
def test_nothing_is_said_where_a_machine_is_always_there(
    scale: Scale, more: dict[str, object]
) -> None:
    assert not said(scale, **more)  # type: ignore[arg-type]


def test_what_is_kept_up_is_kept_for_those_that_share() -> None:
    own = Scale(dedicated=True)
    assert said(own, up_min=1, places=(FAR, {"worker": "gpu-1-0", "address": ""}))
    assert not said(own, up_min=1)  # the one place there is, which never rests
    assert not said(own, places=(FAR, NEAR))


def test_fallback_worker_and_the_place_of_a_worker_that_is_up_keep_nothing_up() -> None:
    assert said(Scale(), workers=(HELPER, {"id": "gpu-0-0", "fallback": False}))


def test_status_of_a_former_controller_says_nothing() -> None:
    old = {"workers": [{"id": "w", "pid": 1}], "edges": []}
    fleet = fleet_of(msgspec.json.encode(old))
    spec = EndpointSpec("m", (Variant("stable", "m", "1", 100.0),))
    assert warnings(spec, fleet) == []
