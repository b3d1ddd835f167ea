"""The desk over a registry in a folder: what is written, by whom, and what when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from pool.registry_watch import RegistryWatch
from pool.rollouts import desk as desk_module
from pool.rollouts.desk import RolloutDesk
from pool.rollouts.needs import Warmth
from registry_sync import audit, endpoints
from registry_sync.directory import DirectoryStore
from registry_sync.documents import EndpointSpec, EndpointState, write
from registry_sync.rollout_terms import RolloutState
from registry_sync.stores import Store, StoreUnavailable
from tests.support.artifacts import put_artifact
from tests.support.rollouts import row, spec_of

WARM = Warmth(warm=1, wanted=1)


class Faulty(DirectoryStore):
    """A store that fails where a test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.is_away: Callable[[str], bool] = lambda key: False
        self.written: list[str] = []

    def _put(self, key: str) -> None:
        if self.is_away(key):
            raise StoreUnavailable(f"{key}: away")
        self.written.append(key)

    def of_endpoints(self) -> list[str]:
        """Return what was written, but for the audit trail."""
        return [key for key in self.written if not key.startswith("audit/")]

    def put_new(self, key: str, data: bytes) -> str:
        self._put(key)
        return super().put_new(key, data)

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        self._put(key)
        return super().put_if(key, data, etag)


class Controller:
    """As much of one as the desk needs."""

    def __init__(self, store: Store) -> None:
        self.watch = RegistryWatch(store)
        self.leads, self.lags, self.seq, self.warmth = True, False, 0, WARM
        self.desk = RolloutDesk(
            store,
            leads=lambda: self.leads,
            epoch=lambda: 7,
            poll=self.poll,
            is_lagging=lambda seq: self.lags,
            warmth=lambda name: self.warmth,
        )

    async def poll(self) -> None:
        if await asyncio.to_thread(self.watch.poll):
            self.seq += 1
            self.desk.on_documents(self.watch.snapshot, self.seq)
            self.desk.round()

    async def settled(self) -> None:
        """Look at the registry, and wait until nothing is being written."""
        await self.poll()
        self.desk.round()
        await self.looked()

    async def looked(self) -> None:
        """Look at what was reported, without waiting for more, and until nothing is written."""
        self.desk._look_at_news()
        await self.rest()

    async def rest(self) -> None:
        """Wait until nothing is being written."""
        for _ in range(100):
            await self.desk.finish(10)
            await asyncio.sleep(0)
            if not self.desk._writing:
                return
        raise AssertionError("it never comes to rest")

    def view(self) -> dict[str, Any]:
        found = self.desk.view("e", lambda spec: {})
        assert found is not None
        return found


@pytest.fixture
def store(tmp_path: Path) -> Faulty:
    made = Faulty(tmp_path / "registry")
    for version in ("1", "2"):
        put_artifact(made, {"model.onnx": version.encode()}, version=version)
    return made


@pytest.fixture
async def controller(store: Faulty) -> AsyncIterator[Controller]:
    made = Controller(store)
    yield made
    made.leads = False
    await made.desk.finish(10)


def put(store: Store, spec: EndpointSpec) -> None:
    endpoints.set_spec(store, replace(spec, revision=0), abort_rollout=True)


def state_of(store: Store) -> EndpointState:
    found = endpoints.read_state(store, "e")
    assert found is not None
    return found[0]


def rollout_of(store: Store) -> RolloutState:
    found = state_of(store).rollout
    assert found is not None
    return found


def good(segment: int, calls: int = 400) -> list[Any]:
    return [row(name, calls, segment=segment) for name in ("stable", "canary")]


async def test_steps_are_taken_by_evidence_and_written_with_it(
    store: Faulty, controller: Controller
) -> None:
    put(store, spec_of(50.0, 100.0))
    await controller.settled()
    assert (rollout_of(store).step, state_of(store).weights["canary"]) == (1, 50.0)
    controller.desk.report("e1/i", tuple(good(1)))
    await controller.settled()
    assert (rollout_of(store).step, state_of(store).weights["canary"]) == (2, 100.0)
    controller.desk.report("e1/i", tuple(good(1)))  # of an edge that is late
    await controller.settled()
    assert rollout_of(store).step == 2
    assert rollout_of(store).state == "running"
    controller.desk.report("e1/i", (row("canary", 400, segment=2),))
    await controller.settled()
    state = rollout_of(store)
    assert (state.state, state.segment, state_of(store).weights["stable"]) == ("promoted", 3, 0.0)
    assert [one.arms["canary"].calls for one in state.segments] == [400, 400]
    assert state.at
    assert state.evidence is not None
    assert endpoints.get_spec(store, "e")[0].variants[0].weight == 100.0  # the user's, untouched


async def test_what_is_seen_of_the_baseline_before_the_first_step_is_kept(
    store: Faulty, controller: Controller
) -> None:
    controller.warmth = Warmth(warm=0, wanted=1)
    put(store, spec_of(100.0))
    await controller.settled()
    assert rollout_of(store).step == 0
    controller.desk.report("e1/i", (row("stable", 300, 6, segment=0),))
    await controller.settled()
    controller.warmth = WARM
    await controller.settled()
    state = rollout_of(store)
    assert (state.step, state_of(store).weights["canary"]) == (1, 100.0)
    (before,) = state.segments
    assert (before.step, before.arms["stable"].calls, before.arms["stable"].errors) == (0, 300, 6)


async def test_bad_candidate_is_rolled_back_with_its_evidence(
    store: Faulty, controller: Controller
) -> None:
    put(store, spec_of(50.0, 100.0, hold_s=3600.0))
    await controller.settled()
    controller.desk.report("e1/i", (row("stable", 300, 1), row("canary", 300, 60)))
    await controller.settled()
    state = rollout_of(store)
    assert (state.state, state_of(store).weights["stable"]) == ("rolled_back", 100.0)
    assert state.reason.startswith("20.00% of the candidate's calls fail")
    assert state.segments[0].arms["canary"].failed_units == 60
    assert state.segments[0].log_e["errors"] > 3.0
    view = controller.view()
    canary = view["variants"][1]
    assert (view["live"], view["verdict"], canary["failed_calls"]) == (False, state.reason, 60)
    assert canary["error_low"] < 0.2 < canary["error_high"]  # what was seen stays to be seen
    assert view["e_values"]["errors"] > 20.0


async def test_hold_begins_when_every_edge_goes_by_the_weights(
    store: Faulty, controller: Controller
) -> None:
    controller.lags = True
    put(store, spec_of(50.0, 100.0, hold_s=0.05))
    await controller.settled()
    await asyncio.sleep(0.06)
    controller.desk.report("e1/i", tuple(good(1)))
    await controller.settled()
    assert rollout_of(store).step == 1
    assert controller.view()["hold_left_s"] is None
    controller.lags = False
    controller.desk.round()  # the hold begins only here
    assert controller.view()["hold_left_s"] > 0.0
    await asyncio.sleep(0.06)
    await controller.settled()
    assert rollout_of(store).step == 2


async def test_hold_goes_on_through_what_leaves_the_weights_as_they_are(
    store: Faulty, controller: Controller
) -> None:
    spec = spec_of(50.0, 100.0, hold_s=3600.0)
    put(store, spec)
    await controller.settled()
    controller.lags = True  # not with what follows
    await asyncio.to_thread(endpoints.purge, store, "e")
    put(store, spec_of(50.0, 100.0, hold_s=3600.0, wish="pause"))
    await controller.settled()
    assert rollout_of(store).state == "paused"
    assert controller.view()["hold_left_s"] > 0.0


async def test_guards_look_at_what_is_new_and_not_at_every_report(
    store: Faulty, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet reports every second from every edge."""
    looks: list[float] = []
    look = desk_module.Guards.look

    def counted(guards: Any, now_s: float, *counts: Any) -> None:
        looks.append(now_s)
        look(guards, now_s, *counts)

    monkeypatch.setattr(desk_module.Guards, "look", counted)
    put(store, spec_of(50.0, 100.0, hold_s=3600.0))
    await controller.settled()
    for number in range(50):
        controller.desk.report(f"e{number}/i", tuple(good(1, calls=1)))
        controller.desk.round()
    assert looks == []
    await controller.looked()
    controller.desk.round()
    assert len(looks) == 1
    assert controller.view()["variants"][0]["calls"] == 50


async def test_of_two_controllers_one_decides(store: Faulty) -> None:
    put(store, spec_of(50.0, 75.0, 100.0))
    both = [Controller(store), Controller(store)]
    await asyncio.gather(*(one.settled() for one in both))
    await asyncio.gather(*(one.settled() for one in both))
    for one in both:
        one.desk.report("e1/i", tuple(good(1)))
    await asyncio.gather(*(one.settled() for one in both))
    assert (rollout_of(store).step, rollout_of(store).segment) == (2, 2)
    assert len(rollout_of(store).segments) == 1
    for one in both:
        await one.settled()
        assert one.view()["segment"] == 2  # the one that was slower goes by the other's


async def test_stale_decision_is_not_written(store: Faulty, controller: Controller) -> None:
    put(store, spec_of(50.0, 75.0, 100.0))
    await controller.settled()
    other = replace(rollout_of(store), step=2, segment=7, reason="by somebody else")

    def elsewhere(state: EndpointState | None) -> EndpointState:
        assert state is not None
        return replace(state, rollout=other, weights={"stable": 50.0, "canary": 50.0})

    await asyncio.to_thread(endpoints.update_state, store, "e", elsewhere)
    controller.desk.report("e1/i", tuple(good(1)))  # would be enough for a step
    await controller.looked()
    assert rollout_of(store) == other
    await controller.settled()
    assert controller.view()["segment"] == 7


async def test_registry_that_is_away_is_tried_again(
    store: Faulty, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "AGAIN_S", 0.05)
    put(store, spec_of(50.0, 100.0, hold_s=3600.0))
    await controller.settled()
    store.is_away = lambda key: key.endswith("state.json")
    controller.desk.report("e1/i", (row("stable", 300), row("canary", 300, 60)))
    await controller.settled()
    assert rollout_of(store).state == "running"
    tried = len(store.of_endpoints())
    controller.desk.round()
    assert not controller.desk._writing  # not at once
    store.is_away = lambda key: False
    await asyncio.sleep(0.06)
    await controller.settled()
    assert rollout_of(store).state == "rolled_back"
    assert len(store.of_endpoints()) == tried + 2


async def test_who_dies_after_writing_and_before_telling_has_decided(
    store: Faulty, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state lies in the registry, but its mark, by which others notice, is the old one."""
    monkeypatch.setattr(desk_module, "AGAIN_S", 0.05)
    put(store, spec_of(50.0, 100.0))
    await controller.settled()
    store.is_away = lambda key: key.endswith(endpoints.MARK_SUFFIX)
    controller.desk.report("e1/i", tuple(good(1)))
    await controller.looked()
    decided = rollout_of(store)
    assert decided.step == 2
    await controller.settled()
    assert controller.view()["step"] == 1
    store.is_away = lambda key: False
    await asyncio.sleep(0.06)
    await controller.settled()
    assert controller.view()["step"] == 2
    assert rollout_of(store) == decided


async def test_counts_never_fall_for_who_watches(store: Faulty, controller: Controller) -> None:
    """What is heard while a decision is written is not in it, but was shown already."""
    put(store, spec_of(50.0, 100.0))
    await controller.settled()
    controller.desk.report("e1/i", tuple(good(1)))
    controller.desk._look_at_news()
    assert controller.desk._writing
    controller.desk.report("e1/i", tuple(good(1, calls=500)))
    assert controller.view()["variants"][1]["calls"] == 500
    await controller.settled()
    assert rollout_of(store).segments[0].arms["canary"].calls == 400
    assert controller.view()["segment"] == 2
    assert controller.view()["variants"][1]["calls"] == 500


async def test_who_leads_no_more_writes_nothing(store: Faulty, controller: Controller) -> None:
    put(store, spec_of())
    await asyncio.to_thread(controller.watch.poll)
    controller.desk.on_documents(controller.watch.snapshot, 1)
    controller.desk.round()
    controller.leads = False
    await controller.desk.finish(10)
    assert endpoints.read_state(store, "e") is None


async def test_new_controller_goes_on_from_what_is_written(store: Faulty) -> None:
    put(store, spec_of(50.0, 75.0, 100.0))
    first = Controller(store)
    await first.settled()
    first.desk.report("e1/i", (row("stable", 400, 2, units=[1]), row("canary", 400, 2)))
    await first.settled()
    assert rollout_of(store).step == 2
    second = Controller(store)
    await second.settled()
    second.desk.report("e1/i", tuple(good(2)))
    view = second.view()
    assert [arm["calls"] for arm in view["variants"]] == [800, 800]
    assert [arm["failed_calls"] for arm in view["variants"]] == [3, 2]


async def test_wishes_are_carried_out(store: Faulty, controller: Controller) -> None:
    for wish, phase, canary in (
        ("run", "running", 10.0),
        ("pause", "paused", 10.0),
        ("run", "running", 10.0),
        ("promote", "promoted", 100.0),
        ("abort", "rolled_back", 0.0),
    ):
        put(store, spec_of(10.0, 100.0, hold_s=3600.0, wish=wish))
        await controller.settled()
        assert (rollout_of(store).state, state_of(store).weights["canary"]) == (phase, canary)


async def test_purge_meanwhile_stays_in_the_state(store: Faulty, controller: Controller) -> None:
    put(store, spec_of())
    await asyncio.to_thread(endpoints.purge, store, "e")
    await controller.settled()
    state = state_of(store)
    assert state.cache_epoch == 1
    assert state.rollout is not None
    await asyncio.to_thread(endpoints.purge, store, "e")
    assert state_of(store).rollout == state.rollout


async def test_spec_without_the_rollout_ends_it(store: Faulty, controller: Controller) -> None:
    put(store, spec_of())
    await controller.settled()
    put(store, replace(spec_of(), rollout=None))
    await controller.settled()
    controller.desk.report("e1/i", tuple(good(1)))
    await controller.settled()
    assert controller.desk.began() == {}
    assert rollout_of(store).step == 1


async def test_guard_that_is_changed_looks_again_at_what_was_counted(
    store: Faulty, controller: Controller
) -> None:
    spec = spec_of(50.0, 100.0, hold_s=3600.0)
    assert spec.rollout is not None
    lax = replace(spec.rollout.guard, errors=False, slower_than_ms=3_600_000)
    put(store, replace(spec, rollout=replace(spec.rollout, guard=lax)))
    await controller.settled()
    bad = (row("stable", 300), row("canary", 300, 60))
    controller.desk.report("e1/i", bad)
    await controller.settled()
    assert rollout_of(store).state == "running"
    etag = endpoints.get_spec(store, "e")[1]
    store.put_if("endpoints/e.json", write(replace(spec, revision=2)), etag)
    await controller.settled()
    assert rollout_of(store).state == "rolled_back"


async def test_bug_ends_no_round(
    store: Faulty, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "AGAIN_S", 0.05)
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(endpoints, "update_state", lambda *args: 1 / 0)
        put(store, spec_of())
        await controller.settled()
    assert [one["event"] for one in logs if one["log_level"] == "error"] == ["bug"]
    assert endpoints.read_state(store, "e") is None
    await asyncio.sleep(0.06)
    await controller.settled()
    assert rollout_of(store).step == 1


async def test_decisions_and_their_evidence_outlive_the_next_rollout(
    store: Faulty, controller: Controller
) -> None:
    put(store, spec_of(50.0, 100.0))
    with capture_logs() as logs:
        await controller.settled()
        controller.desk.report("e1/i", (row("stable", 300), row("canary", 300, 60)))
        await controller.settled()
    put(store, spec_of(50.0, 100.0, id="r2"))
    await controller.settled()
    assert rollout_of(store).id == "r2"
    now = datetime.now(UTC)
    found = audit.page(store, audit.Query(now - timedelta(days=1), now), limit=100).found
    told = [one.record for one in reversed(found) if one.record is not None]
    assert [one.what.removeprefix("rollout.") for one in told[:3]] == ["begin", "step", "rollback"]
    assert {(one.by, one.who, one.target) for one in told} == {("controller", "epoch 7", "e")}
    assert "20.00% of the candidate's calls fail" in told[2].why
    assert "canary 60 of 300 calls failed" in told[2].why
    moved = [line["log_level"] for line in logs if line["event"] == "rollout_moved"]
    assert moved == ["info", "info", "warning"]


async def test_trail_that_cannot_be_written_delays_no_decision(
    store: Faulty, controller: Controller
) -> None:
    store.is_away = lambda key: key.startswith("audit/")
    put(store, spec_of(50.0, 100.0))
    await controller.settled()
    controller.desk.report("e1/i", (row("stable", 300), row("canary", 300, 60)))
    await controller.settled()
    assert rollout_of(store).state == "rolled_back"
