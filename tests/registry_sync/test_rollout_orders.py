"""Rollouts in a registry: what starting one and wishing writes, whoever else writes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from registry_sync import endpoints, rollout_orders
from registry_sync.directory import DirectoryStore
from registry_sync.documents import BadDocument, EndpointSpec, Variant
from registry_sync.endpoints import RevisionConflict
from registry_sync.rollout_terms import Guard
from registry_sync.rollouts import RolloutLive, RolloutUnfit, effective_weights
from registry_sync.stores import NotFound, Object
from tests.support.published import decide, publish

SPEC = EndpointSpec("m", (Variant("stable", "m", "1", 100.0),))


class Racing(DirectoryStore):
    """A store in which something happens right after the next read of the spec."""

    meanwhile: Callable[[], object] | None = None

    def get(self, key: str) -> Object:
        found = super().get(key)
        if key == endpoints.spec_key("m") and (act := self.meanwhile) is not None:
            self.meanwhile = None
            act()
        return found


@pytest.fixture
def store(tmp_path: Path) -> Racing:
    store = Racing(tmp_path / "registry")
    publish(store, "1", "2", "3")
    endpoints.set_spec(store, SPEC)
    return store


def versions(store: DirectoryStore) -> dict[str, float]:
    spec, _ = endpoints.get_spec(store, "m")
    found = endpoints.read_state(store, "m")
    weights = effective_weights(spec, None if found is None else found[0])
    return {arm.version: weights[arm.name] for arm in spec.variants}


def test_a_rollout_is_a_new_revision_and_so_is_each_wish(store: Racing) -> None:
    begun = rollout_orders.start(store, "m", "2", steps=(10, 100), hold_s=5)
    assert begun.moved == ("1", "2")
    assert endpoints.get_spec(store, "m")[0] == begun.spec
    assert versions(store) == {"1": 100, "2": 0}
    decide(store, "m", "running", 10)
    assert versions(store) == {"1": 90, "2": 10}
    assert rollout_orders.wish(store, "m", "pause").moved == ("2", "3")
    assert rollout_orders.wish(store, "m", "pause").moved == ("3", "3")
    assert versions(store) == {"1": 90, "2": 10}
    with pytest.raises(RolloutLive):
        rollout_orders.start(store, "m", "3")


def test_after_the_end_what_it_led_to_becomes_a_revision_of_its_own(store: Racing) -> None:
    rollout_orders.start(store, "m", "2")
    decide(store, "m", "promoted", 100)
    begun = rollout_orders.start(store, "m", "3")
    assert begun.moved == ("2", "4")
    between = endpoints.get_revision(store, "m", 3)
    assert between.rollout is None
    assert [(arm.version, arm.weight) for arm in between.variants] == [("2", 100)]
    assert versions(store) == {"2": 100, "3": 0}


def test_what_cannot_begin_changes_nothing(store: Racing) -> None:
    rollout_orders.start(store, "m", "2")
    decide(store, "m", "promoted", 100)
    with pytest.raises(BadDocument, match=r"\$\.variants\[1\]\.version: m version 9 is not publ"):
        rollout_orders.start(store, "m", "9")
    with pytest.raises(BadDocument, match=r"\$\.rollout\.steps\[1\]\.weight: 5 is not more"):
        rollout_orders.start(store, "m", "3", steps=(5, 5, 100))
    with pytest.raises(BadDocument, match=r"\$\.rollout\.steps\[0\]\.hold_s"):
        rollout_orders.start(store, "m", "3", hold_s=-1)
    with pytest.raises(RolloutUnfit):
        rollout_orders.start(store, "m", "2")
    with pytest.raises(RevisionConflict, match="at revision 2, yours is 1"):
        rollout_orders.start(store, "m", "3", if_revision=1)
    with pytest.raises(NotFound):
        rollout_orders.start(store, "nobody", "3")
    assert endpoints.get_spec(store, "m")[0].revision == 2


def test_terms_that_can_never_be_are_told_before_what_runs_now(store: Racing) -> None:
    rollout_orders.start(store, "m", "2")
    with pytest.raises(BadDocument, match=r"\$\.rollout\.steps\[1\]\.weight: 1 is not more"):
        rollout_orders.start(store, "m", "3", steps=(5, 1))
    with pytest.raises(BadDocument, match=r"\$\.rollout\.guard\.errors: false: nothing"):
        rollout_orders.start(store, "m", "3", guard=Guard(errors=False))
    with pytest.raises(BadDocument, match=r"\$\.rollout\.steps\[0\]\.weight: 0"):
        rollout_orders.start(store, "nobody", "3", steps=(0,))


def test_what_versions_had_before_is_told(store: Racing) -> None:
    variants = (Variant("a", "m", "1", 60.0), Variant("b", "m", "2", 40.0))
    endpoints.set_spec(store, replace(SPEC, variants=variants))
    assert rollout_orders.start(store, "m", "2").shares_before == {"1": 60, "2": 40}


def test_a_spec_that_is_edited_meanwhile_keeps_its_edit(store: Racing) -> None:
    store.meanwhile = lambda: endpoints.set_spec(store, replace(SPEC, deadline_ms=7))
    assert rollout_orders.start(store, "m", "2").moved == ("2", "3")
    decide(store, "m", "running", 1)

    def edited() -> None:
        spec, _ = endpoints.get_spec(store, "m")
        endpoints.set_spec(store, replace(spec, deadline_ms=8))

    store.meanwhile = edited
    assert rollout_orders.wish(store, "m", "abort").moved == ("4", "5")
    assert endpoints.get_spec(store, "m")[0].deadline_ms == 8


def test_of_two_who_start_at_once_one_is_refused(store: Racing) -> None:
    def start(version: str) -> str:
        try:
            return rollout_orders.start(store, "m", version).moved[1]
        except RolloutLive:
            return "refused"

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(start, ("2", "3"))) == ["2", "refused"]
    assert endpoints.get_spec(store, "m")[0].revision == 2
