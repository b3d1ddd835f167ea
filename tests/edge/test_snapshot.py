"""Documents compiled for requests: whole, and never worse than the last good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from edge.metrics import Metrics
from edge.snapshot import Snapshot, compile_snapshot, of_version
from pool.wire.control import Documents
from registry_sync.documents import (
    Assign,
    Cache,
    EndpointSpec,
    EndpointState,
    EngineWish,
    Keys,
    Variant,
    read_spec,
    write,
)
from registry_sync.keys import make_key
from registry_sync.rollout_terms import Guard, Rollout, RolloutState
from tests.support.artifacts import manifest_of

KEYS = write(Keys((make_key("t", ["infer:*"])[1],)))
MANIFESTS = {f"m/{v}": write(manifest_of({"f": v.encode()}, version=v)) for v in "12"}


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path, "e1")


def spec(version: str = "1", **fields: Any) -> bytes:
    return write(
        EndpointSpec(
            "e",
            (Variant("a", "m", version, 90.0), Variant("b", "m", "2", 10.0)),
            cache=Cache(60.0),
            deadline_ms=2500,
            **fields,
        )
    )


def documents(**changes: Any) -> Documents:
    held: dict[str, Any] = {
        "specs": {"e": spec()},
        "states": {},
        "manifests": MANIFESTS,
        "keys": KEYS,
        "rejected": {},
    }
    return Documents(1, 1, **{**held, **changes})


def test_documents_become_endpoints_versions_and_keys(metrics: Metrics) -> None:
    found = compile_snapshot(documents(), Snapshot(), metrics)
    endpoint = found.endpoints["e"]
    assert [(arm.name, arm.version.ref) for arm in endpoint.arms] == [
        ("a", ("m", "1")),
        ("b", ("m", "2")),
    ]
    assert (endpoint.deadline_s, endpoint.cache_ttl_s) == (2.5, 60.0)
    assert found.versions.keys() == {("m", "1"), ("m", "2")}
    assert len(found.keys) == 1
    assert not found.rejected


def test_effective_weights_decide_while_they_are_of_this_revision(metrics: Metrics) -> None:
    def shares(revision: int) -> list[int]:
        state = write(EndpointState("e", revision, {"a": 0.0, "b": 100.0}))
        found = compile_snapshot(documents(states={"e": state}), Snapshot(), metrics)
        return [found.endpoints["e"].assignment.draw(n / 10) for n in range(10)]

    assert shares(0) == [1] * 10
    assert shares(7) == [0] * 9 + [1]


def purges(metrics: Metrics, name: str = "e", **epochs: Any) -> list[str]:
    """Return what names the last purge of version 1 and of version 2 of an endpoint."""
    state = write(EndpointState(name, 0, {}, **epochs))
    spec_of = write(msgspec.structs.replace(read_spec(spec()), endpoint=name))
    told = documents(specs={name: spec_of}, states={name: state})
    return [arm.purged for arm in compile_snapshot(told, Snapshot(), metrics).endpoints[name].arms]


def test_purge_names_every_version_anew(metrics: Metrics) -> None:
    found = [purges(metrics, cache_epoch=epoch) for epoch in (0, 1, 2)]
    assert found[0] == ["", ""]
    assert len({*found[0], *found[1], *found[2]}) == 5


def test_purge_of_a_version_leaves_the_others(metrics: Metrics) -> None:
    before, after = (purges(metrics, cache_epochs=epochs) for epochs in ({}, {"1": 1}))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_purges_of_two_endpoints_are_not_taken_for_each_other(metrics: Metrics) -> None:
    # Both serve the same artifact: what one stored after its purge may be from before the other's.
    one, other = (purges(metrics, name, cache_epoch=1) for name in ("e", "f"))
    assert not {*one} & {*other}


BAD_SPECS = {
    "no document": b"{",
    "a newer schema": spec().replace(b'"schema":1', b'"schema":2'),
    "a version that is not there": spec(version="9"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_spec_that_cannot_be_read_leaves_the_last_good_one(case: str, metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    new = compile_snapshot(documents(specs={"e": BAD_SPECS[case]}), old, metrics)
    assert new.endpoints["e"] is old.endpoints["e"]
    assert new.rejected.keys() == {"endpoints/e.json"}


def test_state_without_any_weight_leaves_the_last_good_endpoint(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    state = write(EndpointState("e", 0, {"a": 0.0, "b": 0.0}))
    new = compile_snapshot(documents(states={"e": state}), old, metrics)
    assert new.endpoints["e"] is old.endpoints["e"]
    assert "$.weights: weights add up to 0" in new.rejected["endpoints/e/state.json"]


def test_bad_document_keeps_no_other_out(metrics: Metrics) -> None:
    found = compile_snapshot(documents(specs={"bad": b"{", "e": spec()}), Snapshot(), metrics)
    assert found.endpoints.keys() == {"e"}


def test_endpoint_that_is_gone_is_gone(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    assert not compile_snapshot(documents(specs={}), old, metrics).endpoints


def test_manifest_that_cannot_be_read_stays_out_alone(metrics: Metrics) -> None:
    found = compile_snapshot(documents(manifests={**MANIFESTS, "m/3": b"{"}), Snapshot(), metrics)
    assert found.versions.keys() == {("m", "1"), ("m", "2")}
    assert found.rejected.keys() == {"models/m/3/manifest.json"}


def test_version_is_compiled_once(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    new = compile_snapshot(documents(), old, metrics)
    assert new.versions["m", "1"] is old.versions["m", "1"]


def test_arm_computes_as_its_version_or_as_the_endpoint_wishes(metrics: Metrics) -> None:
    """Part of the key of cached answers: two endpoints of one version may wish differently."""
    half = replace(manifest_of({"f": b"1"}), precision="fp16")
    for wish, expected in ((EngineWish(), "fp16"), (EngineWish(precision="fp32"), "fp32")):
        told = documents(
            specs={"e": spec(engine=wish)}, manifests={**MANIFESTS, "m/1": write(half)}
        )
        found = compile_snapshot(told, Snapshot(), metrics)
        assert [arm.precision for arm in found.endpoints["e"].arms] == [expected, "fp32"]
        assert of_version(found.versions["m", "1"], metrics).arms[0].precision == "fp16"


def test_counts_of_an_arm_go_on_over_new_documents(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    new = compile_snapshot(documents(), old, metrics)
    assert new.endpoints["e"].arms[0].metrics is old.endpoints["e"].arms[0].metrics


def test_keys_that_cannot_be_read_leave_the_last_good_ones(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    new = compile_snapshot(documents(keys=b"{"), old, metrics)
    assert new.keys == old.keys
    assert new.rejected.keys() == {"keys.json"}


def test_registry_without_keys_has_none(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    assert not compile_snapshot(documents(keys=b""), old, metrics).keys


def test_controller_that_cannot_read_the_keys_takes_none_away(metrics: Metrics) -> None:
    old = compile_snapshot(documents(), Snapshot(), metrics)
    cannot = documents(keys=b"", rejected={"keys.json": "$: no JSON"})
    assert compile_snapshot(cannot, old, metrics).keys == old.keys


def test_version_called_by_number_has_one_arm_and_no_cache(metrics: Metrics) -> None:
    found = compile_snapshot(documents(), Snapshot(), metrics)
    endpoint = of_version(found.versions["m", "2"], metrics)
    assert (endpoint.name, endpoint.cache_ttl_s, len(endpoint.arms)) == ("m", 0.0, 1)
    assert endpoint.assignment.draw(0.99) == 0


def rolling(
    segment: int,
    weight: float = 10.0,
    phase: Any = "running",
    rollout: str = "r",
    **fields: Any,
) -> Documents:
    """Return documents of a rollout in one of its segments."""
    arms = (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0))
    wished = EndpointSpec("e", arms, assign=Assign(("key",)), rollout=Rollout(id=rollout), **fields)
    done = RolloutState(rollout, phase, step=1, segment=segment)
    weights = {"stable": 100 - weight, "canary": weight}
    state = EndpointState("e", wished.revision, weights, rollout=done)
    return documents(specs={"e": write(wished)}, states={"e": write(state)})


def test_change_of_weights_begins_new_counters_and_anything_else_goes_on(
    metrics: Metrics,
) -> None:
    first = compile_snapshot(rolling(1), Snapshot(), metrics)
    same = compile_snapshot(rolling(1, phase="paused", revision=8), first, metrics)
    other = compile_snapshot(rolling(2), same, metrics)
    one, two, three = (found.endpoints["e"] for found in (first, same, other))
    assert [arm.watch for arm in one.arms] == [arm.watch for arm in two.arms]
    assert one.firsts is two.firsts
    assert one.watch is two.watch is three.watch
    assert not {id(arm.watch) for arm in two.arms} & {id(arm.watch) for arm in three.arms}
    assert three.firsts is not two.firsts


def test_another_rollout_of_the_endpoint_counts_from_nothing(metrics: Metrics) -> None:
    old = compile_snapshot(rolling(1), Snapshot(), metrics)
    new = compile_snapshot(rolling(1, rollout="other"), old, metrics)
    one, two = (found.endpoints["e"].watch for found in (old, new))
    assert one is not None
    assert two is not None
    assert (one.id, two.id) == ("r", "other")


def test_documents_that_do_not_fit_leave_the_counters_alone(metrics: Metrics) -> None:
    old = compile_snapshot(rolling(1), Snapshot(), metrics)
    watch = old.endpoints["e"].watch
    assert watch is not None
    rows = watch.evidence()
    unknown = replace(rolling(2), manifests={"m/1": MANIFESTS["m/1"]})
    assert compile_snapshot(unknown, Snapshot(old.endpoints), metrics).rejected
    assert watch.evidence() == rows
    broken = compile_snapshot(replace(rolling(1), specs={"e": b"{"}), old, metrics)
    again = compile_snapshot(rolling(1), broken, metrics)
    assert again.endpoints["e"].arms[1].watch is old.endpoints["e"].arms[1].watch


def test_only_both_arms_of_a_rollout_that_has_begun_are_watched(metrics: Metrics) -> None:
    found = compile_snapshot(rolling(1), Snapshot(), metrics).endpoints["e"]
    assert [arm.watch.variant for arm in found.arms if arm.watch] == ["stable", "canary"]
    begun = replace(rolling(1), states={})
    for idle in (documents(), begun, rolling(1, phase="rolled_back")):
        found = compile_snapshot(idle, Snapshot(), metrics).endpoints["e"]
        assert found.watch is None
        assert [arm.watch for arm in found.arms] == [None, None]


def test_limit_of_the_guard_is_that_of_the_spec_of_the_day(metrics: Metrics) -> None:
    old = compile_snapshot(rolling(1), Snapshot(), metrics)
    limited = write(
        replace(
            read_spec(rolling(1).specs["e"]),
            rollout=Rollout(id="r", guard=Guard(slower_than_ms=250)),
        )
    )
    new = compile_snapshot(replace(rolling(1), specs={"e": limited}), old, metrics)
    watch = new.endpoints["e"].watch
    assert watch is not None
    assert watch.evidence()[0].slow == 0
    arm = new.endpoints["e"].arms[0].watch
    assert arm is not None
    arm.observe(None, 200, 0.3, 1.0)
    assert arm.slow == 1


@pytest.mark.parametrize(("weight", "is_logged"), [(0.0, False), (10.0, True), (100.0, True)])
def test_who_gets_which_arm_is_logged_once_a_candidate_has_weight(
    metrics: Metrics, weight: float, is_logged: bool
) -> None:
    found = compile_snapshot(rolling(1, weight), Snapshot(), metrics).endpoints["e"]
    assert [arm.exposure is not None for arm in found.arms] == [is_logged, is_logged]
