"""Which calls an edge marks for a candidate to answer as well."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edge.metrics import Metrics
from edge.shadowing import Sample, sample_of
from edge.snapshot import Snapshot, compile_snapshot
from pool.wire.control import Documents
from pool.wire.data import ShadowOf
from registry_sync.documents import EndpointSpec, EndpointState, Variant, write
from registry_sync.rollout_terms import Rollout, RolloutState, Shadow
from tests.support.artifacts import manifest_of

ARMS = (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0))
SPEC = EndpointSpec("e", ARMS, rollout=Rollout("r1", shadow=Shadow(0.25, 12.0)))
MARK = ShadowOf("e/r1", "m", "2", 12.0)


def state(phase: Any, id: str = "r1") -> EndpointState:
    weights = {"stable": 100.0, "canary": 0.0}
    return EndpointState("e", 1, weights, rollout=RolloutState(id, phase))


def test_calls_of_the_baseline_are_marked_for_the_candidate() -> None:
    assert sample_of(SPEC, None, "stable") == Sample((MARK,), 0.25)
    assert sample_of(SPEC, None, "canary") is None


@pytest.mark.parametrize(
    ("phase", "id", "is_marked"),
    [
        ("running", "r1", True),
        ("paused", "r1", True),
        ("promoted", "r1", False),
        ("rolled_back", "r1", False),
        ("rolled_back", "an older one", True),
    ],
)
def test_marks_end_with_the_rollout(phase: str, id: str, is_marked: bool) -> None:
    assert (sample_of(SPEC, state(phase, id), "stable") is not None) == is_marked


def test_nothing_is_marked_without_a_shadow_a_rollout_or_another_version() -> None:
    assert sample_of(replace(SPEC, rollout=Rollout("r1")), None, "stable") is None
    assert sample_of(replace(SPEC, rollout=None), None, "stable") is None
    same = (ARMS[0], replace(ARMS[1], version="1"))
    assert sample_of(replace(SPEC, variants=same), None, "stable") is None


def test_a_sample_is_its_share_of_the_calls() -> None:
    sample, dice = Sample((MARK,), 0.25), random.Random(1)
    marked = sum(sample.draw(dice.random()) == (MARK,) for _ in range(20_000))
    assert marked == pytest.approx(5000, rel=0.05)
    assert all(Sample((MARK,), 1.0).draw(dice.random()) for _ in range(1000))


def test_documents_say_which_arm_is_shadowed(tmp_path: Path) -> None:
    manifests = {f"m/{v}": write(manifest_of({"f": v.encode()}, version=v)) for v in "12"}
    documents = Documents(1, 1, {"e": write(SPEC)}, {"e": write(state("paused"))}, manifests, b"")
    metrics = Metrics(tmp_path, "e1")
    arms = compile_snapshot(documents, Snapshot(), metrics).endpoints["e"].arms
    assert [arm.shadow for arm in arms] == [Sample((MARK,), 0.25), None]
