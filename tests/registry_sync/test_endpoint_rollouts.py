"""Setting and rolling back an endpoint whose rollout runs or has ended, in a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from registry_sync import endpoints, rollout_orders
from registry_sync.directory import DirectoryStore
from registry_sync.documents import EndpointSpec, Variant
from registry_sync.endpoint_errors import NoRevision
from registry_sync.endpoints import NoHistory, RevisionConflict
from registry_sync.rollout_terms import Phase, Rollout
from registry_sync.rollouts import RolloutLive, RolloutUnfit, Way, effective_weights
from registry_sync.stores import Object
from tests.support.published import decide, publish

ONE = EndpointSpec("m", (Variant("stable", "m", "1", 100.0),))


class Racing(DirectoryStore):
    """A store in which something happens right before the next state is read."""

    meanwhile: Callable[[], object] | None = None

    def get(self, key: str) -> Object:
        if key == endpoints.state_key("m") and (act := self.meanwhile) is not None:
            self.meanwhile = None
            act()
        return super().get(key)


@pytest.fixture
def store(tmp_path: Path) -> Racing:
    """A registry in which a rollout from version 1 to 2 has begun, at revision 2."""
    store = Racing(tmp_path / "registry")
    publish(store, "1", "2", "3")
    endpoints.set_spec(store, ONE)
    rollout_orders.start(store, "m", "2")
    return store


def current(store: DirectoryStore) -> EndpointSpec:
    return endpoints.get_spec(store, "m")[0]


def serving(store: DirectoryStore) -> str:
    """The version that has all traffic."""
    spec, found = current(store), endpoints.read_state(store, "m")
    weights = effective_weights(spec, None if found is None else found[0])
    (version,) = (arm.version for arm in spec.variants if weights[arm.name] == 100)
    return version


LIVE: list[tuple[Phase, float]] = [("running", 25), ("paused", 25)]


@pytest.mark.parametrize(("phase", "share"), LIVE)
def test_a_running_rollout_is_ended_only_by_who_says_so(
    store: Racing, phase: Phase, share: float
) -> None:
    decide(store, "m", phase, share)
    with pytest.raises(RolloutLive):
        endpoints.set_spec(store, ONE)
    with pytest.raises(RolloutLive):
        endpoints.rollback(store, "m")
    assert current(store).revision == 2
    assert endpoints.set_spec(store, ONE, abort_rollout=True) == 3
    assert serving(store) == "1"


def test_an_edit_that_keeps_the_rollout_keeps_its_weights(store: Racing) -> None:
    decide(store, "m", "running", 25)
    endpoints.set_spec(store, replace(current(store), deadline_ms=7))
    state = endpoints.read_state(store, "m")
    assert state is not None
    assert effective_weights(current(store), state[0]) == {"stable": 75, "canary": 25}


def test_whether_a_rollout_runs_is_asked_of_the_spec_that_is_replaced(store: Racing) -> None:
    """The rollout begins after the new spec was checked, and before it is written."""
    decide(store, "m", "promoted", 100)
    spec = EndpointSpec("m", (Variant("stable", "m", "2", 100.0),))
    store.meanwhile = lambda: rollout_orders.start(store, "m", "3")
    with pytest.raises(RolloutLive, match="to version 3 runs"):
        endpoints.set_spec(store, spec)
    rollout = current(store).rollout
    assert rollout is not None


def test_a_state_that_cannot_be_read_counts_as_a_rollout_that_runs(store: Racing) -> None:
    decide(store, "m", "promoted", 100)
    etag = store.get(endpoints.state_key("m")).etag
    store.put_if(endpoints.state_key("m"), b"{", etag)
    with pytest.raises(RolloutLive):
        endpoints.set_spec(store, ONE)
    endpoints.set_spec(store, ONE, abort_rollout=True)


def test_another_version_does_not_get_the_weights_of_the_one_that_was_watched(
    store: Racing,
) -> None:
    decide(store, "m", "promoted", 100)
    spec = current(store)
    changed = replace(spec, variants=(spec.variants[0], replace(spec.variants[1], version="3")))
    with pytest.raises(RolloutUnfit, match="another id"):
        endpoints.set_spec(store, changed, abort_rollout=True)
    assert spec.rollout is not None
    endpoints.set_spec(store, replace(changed, rollout=Rollout("mine", steps=spec.rollout.steps)))
    assert serving(store) == "1"


def test_a_rollout_that_was_here_before_does_not_pass_as_new(store: Racing) -> None:
    decide(store, "m", "promoted", 100)
    spec = current(store)
    endpoints.set_spec(store, ONE)
    with pytest.raises(RolloutUnfit, match="has been here before"):
        endpoints.set_spec(store, replace(spec, revision=0))


# --- rollback ---


@pytest.mark.parametrize(
    ("phase", "share", "version"), [("promoted", 100, "2"), ("rolled_back", 0, "1")]
)
def test_two_rollbacks_end_where_they_began(
    store: Racing, phase: Phase, share: float, version: str
) -> None:
    rollout_orders.wish(store, "m", "pause")
    rollout_orders.wish(store, "m", "run")  # wishes do not count as something to go back to
    decide(store, "m", phase, share)
    assert serving(store) == version
    endpoints.rollback(store, "m")
    assert current(store).rollout is None
    assert serving(store) == "1"
    endpoints.rollback(store, "m")
    assert serving(store) == version


def test_a_rollback_of_an_edit_leaves_the_rollout_and_what_is_wished(store: Racing) -> None:
    decide(store, "m", "running", 25)
    endpoints.set_spec(store, replace(current(store), deadline_ms=7))
    rollout_orders.wish(store, "m", "pause")
    assert endpoints.rollback(store, "m") == 5
    spec = current(store)
    assert spec.deadline_ms == 10_000
    assert spec.rollout is not None
    assert spec.rollout.wish == "pause"
    assert endpoints.rollback(store, "m") == 6
    assert current(store).deadline_ms == 7


def test_a_rollback_that_aborts_goes_back_before_the_rollout(store: Racing) -> None:
    decide(store, "m", "running", 25)
    endpoints.set_spec(store, replace(current(store), deadline_ms=7))
    endpoints.rollback(store, "m", abort_rollout=True)
    assert replace(current(store), revision=0) == ONE
    assert serving(store) == "1"


def test_a_rollback_goes_back_to_what_an_earlier_rollout_led_to(store: Racing) -> None:
    decide(store, "m", "promoted", 100)
    rollout_orders.start(store, "m", "3")
    decide(store, "m", "promoted", 100)
    assert serving(store) == "3"
    endpoints.rollback(store, "m")
    assert serving(store) == "2"
    endpoints.rollback(store, "m")
    assert serving(store) == "3"


def test_a_rollback_begins_no_rollout_anew(store: Racing) -> None:
    decide(store, "m", "promoted", 100)
    spec = EndpointSpec(
        "m",
        (Variant("stable", "m", "2", 100.0), Variant("canary", "m", "3", 0.0)),
        rollout=Rollout(),
    )
    endpoints.set_spec(store, spec)
    decide(store, "m", "rolled_back", 0)
    with pytest.raises(RolloutUnfit, match="revision 2 of 'm' would begin its rollout anew"):
        endpoints.rollback(store, "m")
    assert serving(store) == "2"


def test_a_rollback_does_not_go_on_with_a_rollout_that_was_aborted(store: Racing) -> None:
    decide(store, "m", "running", 25)
    endpoints.set_spec(store, ONE, abort_rollout=True)
    with pytest.raises(RolloutUnfit, match="revision 2 of 'm' would"):
        endpoints.rollback(store, "m")
    assert serving(store) == "1"


def test_the_last_revision_that_can_be_gone_back_to_is_offered(store: Racing) -> None:
    decide(store, "m", "running", 25)
    endpoints.set_spec(store, replace(ONE, deadline_ms=7), abort_rollout=True)
    rollout_orders.start(store, "m", "3")
    with pytest.raises(
        RolloutLive, match=r"^\$\.variants\[canary\], \$\.rollout: a rollout"
    ) as live:
        endpoints.rollback(store, "m")
    assert live.value.way is not None
    assert live.value.way.option == "abort_rollout"
    endpoints.set_spec(store, replace(ONE, deadline_ms=8), abort_rollout=True)
    with pytest.raises(RolloutUnfit) as unfit:
        endpoints.rollback(store, "m")
    way = unfit.value.way
    assert way == Way("go back to revision 3 with", "to_revision", "3")  # not 4, nor 2
    assert endpoints.rollback(store, "m", to_revision=3) == 6
    assert current(store).deadline_ms == 7
    with pytest.raises(RolloutUnfit) as unfit:
        endpoints.rollback(store, "m", to_revision=2)
    assert unfit.value.way == Way("go back to revision 5 with", "to_revision", "5")
    assert current(store).revision == 6


def test_what_an_ended_rollout_led_to_can_be_gone_back_to(store: Racing) -> None:
    decide(store, "m", "promoted", 100)
    for deadline_ms in (7, 8):
        endpoints.set_spec(store, replace(ONE, deadline_ms=deadline_ms))
    assert endpoints.rollback(store, "m", to_revision=2) == 5
    assert serving(store) == "2"


def test_where_nothing_else_can_be_gone_back_to_nothing_is_offered(store: Racing) -> None:
    endpoints.set_spec(store, ONE, abort_rollout=True)  # revision 1 over again
    with pytest.raises(RolloutUnfit) as unfit:
        endpoints.rollback(store, "m")
    assert unfit.value.way is None


def test_going_back_within_a_rollout_keeps_what_is_wished(store: Racing) -> None:
    decide(store, "m", "running", 25)
    for deadline_ms in (7, 8):
        endpoints.set_spec(store, replace(current(store), deadline_ms=deadline_ms))
    rollout_orders.wish(store, "m", "pause")
    assert endpoints.rollback(store, "m", to_revision=2) == 6
    spec = current(store)
    assert spec.rollout is not None
    assert (spec.deadline_ms, spec.rollout.wish) == (10_000, "pause")


def test_going_back_to_a_revision_needs_one_that_was_there_before(store: Racing) -> None:
    with pytest.raises(NoHistory, match="at revision 2 already"):
        endpoints.rollback(store, "m", to_revision=2)
    with pytest.raises(NoRevision, match=r"^m has no revision 9; there are 1 to 2$"):
        endpoints.rollback(store, "m", to_revision=9)
    assert current(store).revision == 2


def test_an_endpoint_that_began_with_its_rollout_has_nothing_to_go_back_to(
    tmp_path: Path,
) -> None:
    store = DirectoryStore(tmp_path / "other")
    publish(store, "1", "2")
    variants = (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0))
    endpoints.set_spec(store, EndpointSpec("m", variants, rollout=Rollout()))
    rollout_orders.wish(store, "m", "pause")
    with pytest.raises(NoHistory):
        endpoints.rollback(store, "m")
    with pytest.raises(RevisionConflict):
        endpoints.rollback(store, "m", if_revision=1)
