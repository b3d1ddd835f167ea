"""Builds through the controller, over real sockets; workers here only speak its wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from pool import build_orders
from pool import controller as controller_module
from pool.wire import control
from pool.wire.control import Build, BuildReport, PlanReady, Wishes
from pool.wish_watch import WishWatch
from registry_sync import wishes
from registry_sync.builds import Wanted
from registry_sync.documents import EndpointSpec, EngineWish, Variant, write
from registry_sync.stores import AccessDenied
from tests.support.artifacts import put_artifact
from tests.support.control import Member, beat, engine, worker
from tests.support.control_stack import Stack, running_controller

K = "ab" * 32


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    monkeypatch.setattr(build_orders, "SETTLE_S", 0.0)
    async with running_controller() as made:
        yield made


def builder(
    name: str = "w1",
    *engines: control.EngineState,
    builds: Sequence[str] = ("rtx/sm_86",),
    device_class: str = "sm_86",
    incarnation: str = "i1",
) -> control.Message:
    register = worker(name, *engines, incarnation=incarnation)
    return msgspec.structs.replace(register, device_class=device_class, builds=tuple(builds))


def report(state: str, key: str = K, version: str = "1", **more: Any) -> BuildReport:
    return BuildReport(key, "m", version, "rtx", "sm_86", state, **more)


def wish(stack: Stack, version: str = "1", device_class: str = "sm_86") -> None:
    wishes.put(stack.store, wishes.new_wish("m", version, device_class))


async def poke(stack: Stack) -> None:
    await (await stack.join(control.Ask("poke", "", 1))).hear(control.Answer)


def rows(stack: Stack) -> list[Any]:
    return [
        (row["version"], row["device_class"], row["state"], row["worker"])
        for row in stack.status()["builds"]
    ]


async def said(member: Member, *reports: BuildReport) -> None:
    """Say something, and wait until the controller has taken it."""
    for one in reports:
        member.say(one)
    member.say(control.Ask("none"))  # what no worker may say: it hangs up
    await member.lost()


# what versions are to run with


async def test_workers_are_told_what_versions_are_to_run_with(stack: Stack) -> None:
    one = await stack.joined(builder("w1"))
    stack.put_spec()
    await stack.controller.poll()
    told = await one.hear(Wishes)
    assert (told.epoch, [*told.wishes]) == (3, ["m/1"])
    assert msgspec.json.decode(told.wishes["m/1"], type=Wanted).rows_max == 32
    late = await stack.joined(builder("w2"))
    assert await late.hear(Wishes) == told


async def test_wishes_are_sent_again_only_when_they_change(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(builder("w1"))
    await one.hear(Wishes)
    stack.put_spec("other")
    await stack.controller.poll()
    spec = EndpointSpec("e", (Variant("a", "m", "1", 100.0),), engine=EngineWish("rtx"))
    stack.store.delete("endpoints/other.json")
    stack.store.delete("endpoints/e.json")
    stack.store.put_new("endpoints/e.json", write(spec))
    await stack.controller.poll()
    await one.heard_often(Wishes, 2)
    put_artifact(stack.store, {"model.onnx": b"2"}, version="2")
    stack.put_spec("third", "2")
    await stack.controller.poll()
    found = await one.heard_often(Wishes, 3)
    assert [[*told.wishes] for told in found] == [["m/1"], ["m/1"], ["m/1", "m/2"]]


async def test_worker_that_knows_no_builds_is_told_nothing_of_them(stack: Stack) -> None:
    stack.put_spec()
    wish(stack)
    await poke(stack)
    old = await stack.joined(worker("w1", engine()))
    new = await stack.joined(builder("w2"))
    await new.hear(Build)
    new.say(report("built"))
    again = await stack.joined(builder("w3", engine()))
    await again.hear(PlanReady)
    assert not [one for one in old.heard if isinstance(one, Wishes | Build | PlanReady)]


# orders and reports


async def test_wanted_plan_is_built_by_one_worker_and_told_to_all(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    members = [await stack.joined(builder(f"w{n}", engine())) for n in (1, 2, 3)]
    for member in members:
        member.say(report("wanted"))
    order = await members[0].hear(Build)
    assert order == Build(3, "m", "1", "rtx", "sm_86", K)
    members[0].say(report("building"))
    members[0].say(report("built"))
    for member in members:
        ready = await member.hear(PlanReady)
        assert ready == PlanReady(3, K, "m", "1", "rtx", "sm_86")
    assert not members[1].all(Build)
    assert not members[2].all(Build)
    assert rows(stack) == [("1", "sm_86", "built", "")]
    assert stack.status()["build_outcomes"]["built"] == 1


async def test_version_that_is_loaded_later_hears_of_its_plan(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(builder("w1", engine()))
    other = await stack.joined(builder("w2"))
    one.say(report("built"))
    await one.hear(PlanReady)
    assert not other.all(PlanReady)
    other.say(beat(engine()))
    stack.controller._builds.round()  # as every half second
    stack.go(stack.controller.tick_forever())
    await other.hear(PlanReady)


async def test_build_goes_to_another_worker_when_the_builder_has_ended(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    one = await stack.joined(builder("w1", engine()))
    other = await stack.joined(builder("w2", engine()))
    one.say(report("wanted"))
    other.say(report("wanted"))
    await one.hear(Build)
    one.say(report("building"))
    await stack.joined(builder("w1", engine(), incarnation="i2"))
    assert (await other.hear(Build)).key == K


async def test_failed_build_is_shown_with_its_reason(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(builder("w1", engine()))
    one.say(report("wanted"))
    await one.hear(Build)
    await said(one, report("failed", reason="no kernel for Foo", retry_ms=1000))
    (row,) = stack.status()["builds"]
    assert (row["state"], row["reason"], row["failures"]) == ("failed", "w1: no kernel for Foo", 1)
    assert 5 < row["retry_s"] <= 10


async def test_worker_may_say_only_what_workers_say(stack: Stack) -> None:
    one = await stack.joined(builder())
    one.say(control.Ask("status"))
    await one.lost()


async def test_new_leader_waits_for_those_who_build_already(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_orders, "SETTLE_S", 0.3)
    await stack.controller.poll()
    stack.go(stack.controller.tick_forever())
    one = await stack.joined(builder("w1", engine()))
    one.say(report("wanted"))
    other = await stack.joined(builder("w2", engine()))
    other.say(report("building"))
    other.say(report("built"))
    await one.hear(PlanReady)
    assert not one.all(Build)


async def test_who_does_not_lead_gives_no_orders_and_forgets(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    stack.go(stack.controller.tick_forever())
    one = await stack.joined(builder("w1", engine()))
    one.say(report("building"))
    stack.leads = False
    await one.lost()
    stack.leads, stack.epoch = True, 4
    assert rows(stack) == []
    await stack.controller.poll()
    again = await stack.joined(builder("w1", engine()))
    assert (await again.hear(Wishes)).epoch == 4


# the users' wishes


async def test_wish_is_taken_when_the_controller_is_poked(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(builder("w1"))
    wish(stack)
    await stack.controller.poll()
    assert not one.all(Build)
    await poke(stack)
    stack.go(stack.controller.tick_forever())
    assert await one.hear(Build) == Build(3, "m", "1", "", "sm_86")
    one.say(report("built"))
    await one.until(lambda: [True] if rows(stack)[0][2] == "built" else [])


async def test_build_whose_wish_is_withdrawn_is_given_up(stack: Stack) -> None:
    await stack.controller.poll()
    one = await stack.joined(builder("w1"))
    wish(stack)
    await poke(stack)
    stack.go(stack.controller.tick_forever())
    await one.hear(Build)
    one.say(report("building"))
    wishes.withdraw(stack.store, "m", "1", "sm_86")
    await poke(stack)
    await one.until(lambda: [order for order in one.all(Build) if order.is_over])


async def test_wish_that_nobody_can_build_is_shown_with_what_is_missing(stack: Stack) -> None:
    wish(stack, device_class="sm_120")
    await poke(stack)
    await stack.joined(builder("w1"))
    stack.controller._builds.round()
    (row,) = stack.status()["builds"]
    assert row["state"] == "waiting"
    assert row["reason"] == (
        "no worker is here that can build a plan for sm_120; those here can build rtx/sm_86"
    )


async def test_wish_of_a_version_that_is_not_published_waits_for_it(stack: Stack) -> None:
    stack.store.put_new(
        "builds/m/9/sm_86.json", msgspec.json.encode(wishes.new_wish("m", "9", "sm_86"))
    )
    await poke(stack)
    (row,) = stack.status()["builds"]
    assert (row["state"], row["reason"]) == ("waiting", "m version 9 is not published")
    put_artifact(stack.store, {"model.onnx": b"9"}, version="9")
    one = await stack.joined(builder("w1"))
    await poke(stack)
    stack.controller._builds.round()
    assert (await one.hear(Build)).version == "9"


async def test_wishes_are_listed_seldom_and_read_once(stack: Stack) -> None:
    asked: list[str] = []
    listed, got = stack.store.list, stack.store.get

    class Counting:
        def list(self, folder: str, recursive: bool = True) -> Any:
            asked.append(f"list {folder}")
            return listed(folder, recursive)

        def get(self, key: str) -> Any:
            asked.append(f"get {key}")
            return got(key)

    watch = WishWatch(Counting(), 60.0)  # type: ignore[arg-type]
    wish(stack)
    for _ in range(5):
        watch.poll()
    assert asked == ["list builds", "get builds/m/1/sm_86.json", "get models/m/1/manifest.json"]
    for _ in range(3):
        watch.poll(is_asked=True)
    assert asked[3:] == ["list builds"] * 3
    wishes.withdraw(stack.store, "m", "1", "sm_86")
    watch.poll(is_asked=True)
    assert not watch.wishes
    assert asked[6:] == ["list builds"]


async def test_wish_that_cannot_be_read_is_shown_and_others_are_taken(stack: Stack) -> None:
    stack.store.put_new("builds/m/1/sm_75.json", b"{")
    wish(stack)
    await poke(stack)
    await poke(stack)
    assert "builds/m/1/sm_75.json" in stack.status()["rejected"]
    assert [one.device_class for one in stack.watch.wishes.wishes] == ["sm_86"]
    stack.store.delete("builds/m/1/sm_75.json")
    await poke(stack)
    assert not stack.status()["rejected"]


async def test_wishes_that_may_not_be_listed_hold_up_nothing_else(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish(stack)
    await poke(stack)
    listed = stack.store.list

    def forbidden(folder: str, recursive: bool = True) -> Any:
        if folder == "builds":
            raise AccessDenied("builds/", "no")
        return listed(folder, recursive)

    monkeypatch.setattr(stack.store, "list", forbidden)
    stack.put_spec()
    await poke(stack)
    assert "access denied" in stack.status()["rejected"]["builds"]
    assert [one["name"] for one in stack.status()["endpoints"]] == ["e"]
    assert len(stack.watch.wishes.wishes) == 1
    monkeypatch.undo()
    await poke(stack)
    assert not stack.status()["rejected"]
