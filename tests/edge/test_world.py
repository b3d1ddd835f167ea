"""What an edge was told, and what it keeps while nobody tells it anything."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge import world as world_module
from edge.dispatching.dispatch import Pool
from edge.metrics import Metrics
from edge.world import World
from pool.wire import control
from pool.wire.control import QuotaParts
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer
from registry_sync.documents import EndpointSpec, EndpointState, Variant, write
from registry_sync.rollout_terms import Rollout, RolloutState
from tests.support.artifacts import manifest_of
from tests.support.control import Member

REF = ("m", "2")


def documents(seq: int = 1, epoch: int = 1, versions: str = "1") -> control.Documents:
    spec = EndpointSpec("e", (Variant("a", "m", "1", 100.0),))
    manifests = {f"m/{v}": write(manifest_of({"f": v.encode()}, version=v)) for v in versions}
    return control.Documents(epoch, seq, {"e": write(spec)}, {}, manifests, b"")


def rolling_out() -> control.Documents:
    """Return documents in which an endpoint is in the third segment of a rollout."""
    arms = (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0))
    spec = EndpointSpec("e", arms, rollout=Rollout(id="r"))
    done = RolloutState("r", step=1, segment=3)
    state = EndpointState("e", 1, {"stable": 99.0, "canary": 1.0}, rollout=done)
    held = {"specs": {"e": write(spec)}, "states": {"e": write(state)}}
    return msgspec.structs.replace(documents(versions="12"), **held)


ROUTES = control.Routes(1, 1, (), (control.EngineRoute("m", "1", (), ("w1",)),), ready=True)


class Place:
    """An edge's world, and the controller's side of its connection."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = Address(path=f"{folder}/c")
        self.members: asyncio.Queue[Member] = asyncio.Queue()
        self.tasks: list[asyncio.Task[None]] = []
        self.world = self.make()

    def make(self) -> World:
        async def find() -> str:
            return str(self.address)

        return World(
            edge_id="e1",
            folder=self.folder / "edge",
            pool=Pool("e1", None),
            find=find,
            secrets=None,
            metrics=Metrics(self.folder / "metrics", "e1"),
        )

    def on_peer(self, peer: Peer) -> None:
        self.members.put_nowait(Member(peer))

    async def start(self) -> Member:
        """Let the world run; return the controller's side."""
        self.tasks.append(asyncio.get_running_loop().create_task(self.world.run()))
        return await self.member()

    async def member(self) -> Member:
        async with asyncio.timeout(10):
            return await self.members.get()

    async def until(self, is_so: Any) -> None:
        async with asyncio.timeout(10):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Place(folder)
    server = await serve(made.address, None, made.on_peer)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    await made.world._pool.close()
    await server.close()
    await asyncio.sleep(0.03)
    shutil.rmtree(folder)


async def test_edge_registers_and_confirms_the_documents(place: Place) -> None:
    member = await place.start()
    register = await member.hear(control.RegisterEdge)
    assert (register.id, register.incarnation) == ("e1", place.world.incarnation)
    member.say(documents(seq=5))
    assert await member.hear(control.Ack) == control.Ack(1, 5)
    assert place.world.snapshot.endpoints.keys() == {"e"}


async def test_silence_ends_with_whatever_a_controller_says(place: Place) -> None:
    await asyncio.sleep(0.02)
    silent_s = place.world.silence_s
    assert silent_s >= 0.02, "it is counted from the start"
    member = await place.start()
    member.say(control.Welcome(control.WIRE, 1))
    await place.until(lambda: place.world.silence_s < silent_s)


async def test_ack_comes_after_the_documents_are_in_force(place: Place) -> None:
    member = await place.start()
    for seq in range(1, 6):
        member.say(documents(seq, versions="1" if seq % 2 else "12"))
        await member.heard_often(control.Ack, seq)
        assert (("m", "2") in place.world.snapshot.versions) == (seq % 2 == 0)


async def test_routes_make_the_edge_ready(place: Place) -> None:
    member = await place.start()
    assert not place.world.has_routes
    member.say(ROUTES)
    await place.until(lambda: place.world.has_routes)
    assert place.world.is_pool_ready


async def test_edge_boots_from_what_it_was_told_last(place: Place) -> None:
    member = await place.start()
    member.say(documents())
    member.say(ROUTES)
    await place.until(lambda: (place.folder / "edge" / "routes.last").exists())
    again = place.make()
    again.boot()
    assert again.snapshot.endpoints.keys() == {"e"}
    assert (again.has_routes, again.is_pool_ready) == (True, True)
    assert (place.folder / "edge" / "documents.last").stat().st_mode & 0o77 == 0


async def test_edge_keeps_to_the_parts_of_quotas_that_it_is_told(place: Place) -> None:
    member = await place.start()
    assert (await member.hear(control.RegisterEdge)).parts == (QuotaParts("", 1.0, 1.0, 1.0),)
    told = (QuotaParts("", 0.25, 0.5, 0.75), QuotaParts("k", 0.5, 0.5, 0.5))
    member.say(control.QuotaShares(1, 4, told))
    assert await member.hear(control.QuotaAck) == control.QuotaAck(1, 4)
    member.peer.close()
    again = await place.member()
    assert (await again.hear(control.RegisterEdge)).parts == told


async def test_edge_that_boots_alone_shares_with_as_many_as_there_were(place: Place) -> None:
    member = await place.start()
    member.say(msgspec.structs.replace(ROUTES, edges=4))
    await place.until(lambda: (place.folder / "edge" / "routes.last").exists())
    again = place.make()
    again.boot()
    assert again.leases.connect() == (QuotaParts("", 0.25, 0.25, 0.25),)


async def test_first_boot_knows_nothing(place: Place) -> None:
    place.world.boot()
    assert (place.world.snapshot.endpoints, place.world.has_routes) == ({}, False)


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"x" * 999, control.pack(control.Welcome(1, 1))], ids=range(4)
)
async def test_copy_that_cannot_be_read_is_ignored(place: Place, content: bytes) -> None:
    folder = place.folder / "edge"
    folder.mkdir()
    (folder / "routes.last").write_bytes(control.pack(ROUTES))
    (folder / "documents.last").write_bytes(content)
    place.world.boot()
    assert (place.world.snapshot.endpoints, place.world.has_routes) == ({}, True)


async def test_every_shortened_copy_is_ignored(place: Place) -> None:
    folder = place.folder / "edge"
    folder.mkdir()
    whole = control.pack(documents())
    for end in range(0, len(whole), 37):
        (folder / "documents.last").write_bytes(whole[:end])
        place.world.boot()
        assert not place.world.snapshot.endpoints


async def test_copy_that_cannot_be_written_costs_only_the_copy(place: Place) -> None:
    (place.folder / "edge").write_text("a file where the folder should be")
    member = await place.start()
    member.say(documents())
    await member.hear(control.Ack)
    assert place.world.snapshot.endpoints


async def test_lower_epoch_is_not_listened_to(place: Place) -> None:
    member = await place.start()
    member.say(documents(epoch=5))
    await member.hear(control.Ack)
    member.say(documents(seq=2, epoch=4))
    await member.lost()
    assert (await place.member()).peer.is_open
    assert len(member.all(control.Ack)) == 1


async def test_what_was_counted_is_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "COUNTERS_S", 0.02)
    arm = place.world.metrics.arm(("e", 3, "a", "1"))
    arm.requests, arm.errors, arm.hits, arm.statuses = (
        9,
        2,
        4,
        {200: 7, 422: 1, 500: 2, 503: 7, 504: 3},
    )
    arm.add((0.003, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1, 1))
    place.world.metrics.in_flight = lambda: 5
    member = await place.start()
    counters = await member.hear(control.Counters)
    assert counters.incarnation == place.world.incarnation
    seconds = tuple(arm.request_s.counts)
    assert sum(seconds) == 1
    assert counters.counts == (control.VariantCount("e", 3, "a", "1", 9, 2, 4, 12, seconds, 5),)
    assert counters.in_flight == 5


async def test_what_was_seen_of_a_rollout_is_reported(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "COUNTERS_S", 0.02)
    member = await place.start()
    member.say(rolling_out())
    await member.hear(control.Ack)
    watch = place.world.snapshot.endpoints["e"].watch
    assert watch is not None
    watch.segment(3, ()).arms["canary"].observe(None, 500, 0.01, 1.0)
    seen = await member.hear(
        control.Evidence, lambda evidence: any(row.calls for row in evidence.arms)
    )
    assert seen == control.Evidence(place.world.incarnation, watch.evidence())
    assert [(row.rollout, row.segment, row.variant, row.errors) for row in seen.arms] == [
        ("r", 3, "stable", 0),
        ("r", 3, "canary", 1),
    ]
    member.say(documents())
    await place.until(lambda: place.world.snapshot.endpoints["e"].watch is None)
    before = len(member.all(control.Evidence))
    counters = len(member.all(control.Counters))
    await member.heard_often(control.Counters, counters + 3)
    assert len(member.all(control.Evidence)) <= before + 1  # one was on its way


async def test_edge_that_restarts_counts_from_nothing_as_somebody_else(place: Place) -> None:
    member = await place.start()
    member.say(rolling_out())
    await place.until(lambda: (place.folder / "edge" / "documents.last").exists())
    watch = place.world.snapshot.endpoints["e"].watch
    assert watch is not None
    watch.segment(3, ()).arms["canary"].observe(b"u", 500, 0.01, 1.0)
    again = place.make()
    again.boot()
    begun = again.snapshot.endpoints["e"].watch
    assert begun is not None
    assert {(row.segment, row.calls) for row in begun.evidence()} == {(3, 0)}
    assert again.incarnation != place.world.incarnation


# versions called by number


async def test_version_is_asked_for_once_however_many_wait(place: Place) -> None:
    member = await place.start()
    asked = [asyncio.create_task(place.world.resolve(REF)) for _ in range(5)]
    await member.hear(control.Resolve)
    member.say(documents(versions="12"))
    member.say(control.Resolved(*REF, True))
    found = await asyncio.gather(*asked)
    assert {version.ref for version in found if version is not None} == {REF}
    assert len(found) == 5
    assert len(member.all(control.Resolve)) == 1


async def test_one_who_leaves_takes_the_answer_from_nobody(place: Place) -> None:
    member = await place.start()
    first = asyncio.create_task(place.world.resolve(REF))
    second = asyncio.create_task(place.world.resolve(REF))
    await member.hear(control.Resolve)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    member.say(documents(versions="12"))
    member.say(control.Resolved(*REF, True))
    async with asyncio.timeout(1):
        assert (await second) is not None
    assert not place.world._resolving
    assert not place.world._resolvers


async def test_version_that_is_not_there_is_not_asked_for_again_at_once(place: Place) -> None:
    member = await place.start()
    for _ in range(3):
        asked = asyncio.create_task(place.world.resolve(REF))
        await member.hear(control.Resolve)
        member.say(control.Resolved(*REF, False))
        assert await asked is None
    assert len(member.all(control.Resolve)) == 1


async def test_new_documents_let_a_version_be_asked_for_again(place: Place) -> None:
    member = await place.start()
    asked = asyncio.create_task(place.world.resolve(REF))
    await member.hear(control.Resolve)
    member.say(control.Resolved(*REF, False))
    await asked
    member.say(documents())
    await member.hear(control.Ack)
    asked = asyncio.create_task(place.world.resolve(REF))
    await member.until(lambda: member.all(control.Resolve)[1:])
    member.say(control.Resolved(*REF, False))
    await asked


async def test_registry_that_does_not_answer_is_not_a_version_that_is_missing(
    place: Place,
) -> None:
    member = await place.start()
    asked = asyncio.create_task(place.world.resolve(REF))
    await member.hear(control.Resolve)
    member.say(control.Resolved(*REF, False, "no answer from the bucket"))
    with pytest.raises(ConnectionError, match="bucket"):
        await asked
    assert not place.world._unknown_until_s


async def test_nobody_to_ask_is_said_at_once(place: Place) -> None:
    with pytest.raises(ConnectionError):
        await place.world.resolve(REF)
    with pytest.raises(ConnectionError):
        await place.world.ask("status")


async def test_controller_that_does_not_answer_is_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "RESOLVE_S_MAX", 0.05)
    await place.start()
    await place.until(lambda: place.world.link.is_up)
    with pytest.raises(ConnectionError, match="does not answer"):
        await place.world.resolve(REF)
    assert not place.world._resolving


async def test_what_a_controller_knows_is_not_waited_for_long(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "ANSWER_S_MAX", 0.05)
    await place.start()
    await place.until(lambda: place.world.link.is_up)
    async with asyncio.timeout(world_module.POKE_S_MAX / 2):
        with pytest.raises(ConnectionError, match="does not answer"):
            await place.world.ask("status")


async def test_questions_under_way_are_bounded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "RESOLVES_MAX", 2)
    monkeypatch.setattr(world_module, "RESOLVE_S_MAX", 0.3)
    await place.start()
    await place.until(lambda: place.world.link.is_up)
    asked = [asyncio.create_task(place.world.resolve(("m", str(n)))) for n in range(2, 5)]
    with pytest.raises(ConnectionError, match="too many"):
        await asked[2]
    await asyncio.gather(*asked, return_exceptions=True)


async def test_answer_goes_to_who_asked(place: Place) -> None:
    member = await place.start()
    await place.until(lambda: place.world.link.is_up)
    one = asyncio.create_task(place.world.ask("status"))
    other = asyncio.create_task(place.world.ask("warm", "e"))
    await member.until(lambda: member.all(control.Ask)[1:])
    for question in reversed(member.all(control.Ask)):
        member.say(control.Answer(True, question.what, b"", question.id))
    assert [(await one).detail, (await other).detail] == ["status", "warm"]


@pytest.mark.rule("F20")
async def test_what_is_in_quarantine_is_told_and_learned(place: Place) -> None:
    suspects = place.world._pool.suspects
    member = await place.start()
    assert (await member.hear(control.RegisterEdge)).quarantined == ()
    member.say(control.Welcome(control.WIRE, 1))
    row = control.Quarantined(b"fp", "m", "1", 60_000)
    member.say(control.Quarantine(1, (row,)))
    await place.until(lambda: suspects.watched)
    assert suspects.watched == {("m", "1"): 1}
    suspects.on_news()
    (told,) = (await member.hear(control.Poison)).quarantined
    assert (told.fingerprint, told.model, told.version) == (b"fp", "m", "1")
    assert 0 <= 60_000 - told.left_ms < 20_000
    member.peer.close()  # the next controller knows nothing
    again = await place.member()
    register = await again.hear(control.RegisterEdge)
    (known,) = register.quarantined
    assert register.quarantines
    assert known.fingerprint == b"fp"
