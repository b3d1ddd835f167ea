"""A worker that looks for better engines: real builders, a real sync desk, this test as controller.

The engine that needs plans is ONNX Runtime with graphs optimized beforehand; see `plan_engine`.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pool import upgrading
from pool.building import Bench
from pool.config import WorkerConfig
from pool.engines import choice, device
from pool.engines.base import PlanEngine, Session
from pool.engines.probes import Devices
from pool.engines.registry import find_engines, find_plan_engines
from pool.load_guard import LoadGuard
from pool.loaded import Loaded
from pool.loading import Loader
from pool.parking import Parking
from pool.plan_shelf import PlanShelf
from pool.slots import EngineSlot
from pool.upgrading import Upgrades
from pool.wire import control
from pool.wire.control import Build, BuildReport, PlanReady, Welcome, Wishes
from pool.wire.handshake import Secrets
from registry_sync import plan_store, plans
from registry_sync.builds import Wanted
from registry_sync.daemon import Daemon, Registry
from registry_sync.documents import EngineWish, GateLimits, Manifest
from registry_sync.local_plans import LocalPlans
from registry_sync.open import open_store
from registry_sync.plans import GateReport, PlanMeta, signed
from registry_sync.publish import Terms, publish
from registry_sync.stores import Store, StoreUnavailable
from tests.support import pt2
from tests.support.models import mlp
from tests.support.plan_engine import ELSEWHERE, STUDIO, OptimizedEngine, Studio, build_plan

ENGINE = "tests.support.plan_engine:OptimizedEngine"
SECRETS = Secrets.parse("the secret of this fleet")
STRANGER = Secrets.parse("the secret of another fleet")
HERE = device.cpu().device_class
INPUT = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)


class Unsteady(Registry):
    """A registry that can be out of reach."""

    is_down = False

    def store(self) -> Store:
        if self.is_down:
            raise StoreUnavailable("the registry does not answer")
        return super().store()


class World:
    """One worker's part that looks for engines, on a node of its own, and what it says."""

    def __init__(
        self,
        folder: Path,
        registry: str,
        *,
        alone_s: float = 3600.0,
        plan_engines: tuple[PlanEngine, ...] | None = None,
    ) -> None:
        self.folder = folder
        self.socket = str(folder / "s")
        config = WorkerConfig(
            id="w", data=str(folder), listen="unix:/nowhere", sync_socket=self.socket, threads=1
        )
        self.plans = LocalPlans(folder / "store" / "engines")
        guard = LoadGuard(folder / "loading", folder.name)
        self.loader = Loader(config, find_engines(), guard, Parking(()))
        self.registry = Unsteady(registry)
        self.daemon = Daemon(self.registry, self.loader.local, self.plans)
        bench = Bench(data=folder, engines=(ENGINE,), threads=1, gives_way=False, pause_s=0.01)
        loader = self.loader
        self.shelf = PlanShelf(
            self.plans, SECRETS, self.socket, bench, loader.golden, guard, loader.portable
        )
        self.said: list[BuildReport] = []
        self.is_linked = False
        self.upgrades = Upgrades(
            Devices.of([OptimizedEngine()] if plan_engines is None else plan_engines),
            self.shelf,
            self.loader.local,
            bring=self.loader.bring,
            portable=self.loader.portable,
            send=self._send,
            is_linked=lambda: self.is_linked,
            alone_s=alone_s,
        )
        self.slot = EngineSlot("m", "1", self._load, self._changed)
        self.others: list[EngineSlot] = []
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self.daemon.connected, self.socket)

    async def stop(self) -> None:
        await self.upgrades.close()
        await self.slot.close()
        assert self.server is not None
        self.server.close()
        await self.daemon.end()

    def _send(self, message: control.Message) -> bool:
        assert isinstance(message, BuildReport)
        self.said.append(message)
        return True

    async def _load(self, model: str, version: str) -> Loaded:
        upgrades = self.upgrades
        return await self.loader.load(
            model, version, upgrades.best_here, upgrades.engine_name, lambda _: nullcontext()
        )

    def _changed(self) -> None:
        self.upgrades.look([self.slot, *self.others])

    def slot_of(self, model: str) -> EngineSlot:
        """Return a further slot, of another model's version 1."""
        self.others.append(EngineSlot(model, "1", self._load, self._changed))
        return self.others[-1]

    @property
    def engine(self) -> str:
        """What serves now."""
        return self.slot.loaded.engine if self.slot.loaded else ""

    def led(self, **wishes: Any) -> None:
        """Be dialled to by a controller that knows of plans."""
        self.is_linked = True
        self.upgrades.dialled()
        self.upgrades.on_message(Welcome(control.WIRE, 1))
        self.wish(**wishes)
        self.upgrades.on_message(Welcome(control.WIRE, 1))  # as every second

    def wish(self, **wish: Any) -> None:
        wanted = msgspec.json.encode(Wanted(EngineWish(**wish)))
        self.upgrades.on_message(Wishes(1, {"m/1": wanted} if wish else {}))

    def order(self, key: str = "", device_class: str = HERE, engine: str = "optimized") -> None:
        self.upgrades.on_message(Build(1, "m", "1", engine, device_class, key))

    def drop(self, key: str) -> None:
        order = Build(1, "m", "1", "", HERE, key, is_over=True)
        self.upgrades.on_message(order)

    def answer(self) -> Any:
        assert self.slot.loaded is not None
        return self.slot.loaded.session.infer({"x": INPUT})["y"]

    async def explains(self, start: str) -> str:
        """Return why nothing better serves, once that is for such a reason."""
        why = self.upgrades.why
        return await self.until(
            lambda: why(self.slot) if why(self.slot).startswith(start) else "", start
        )

    def states(self) -> list[str]:
        """Return what was said, without saying again."""
        found = [report.state for report in self.said]
        return [state for at, state in enumerate(found) if at == 0 or found[at - 1] != state]

    async def warm(self) -> None:
        self.slot.ensure()
        await self.until(lambda: self.slot.state == "warm", "warm")

    async def serves(self, engine: str) -> None:
        await self.until(lambda: self.engine == engine, f"{engine} serves")

    async def until(self, holds: Callable[[], Any], what: str) -> Any:
        for _ in range(6000):
            if found := holds():
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"not within a minute: {what}; {self.said}")

    async def says(self, state: str) -> BuildReport:
        def find() -> list[BuildReport]:
            return [report for report in self.said if report.state == state]

        found: list[BuildReport] = await self.until(find, state)
        return found[-1]


class Fleet:
    """A registry with the version `m` `1`, and the nodes on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = str(folder / "registry")
        self.store = open_store(self.registry)
        self.studio = Studio(folder / "studio")
        self.worlds: list[World] = []
        self.graph = mlp(folder / "m.onnx")

    def publish(self, **publishing: Any) -> None:
        publish(self.store, "m", self.graph, **publishing)

    async def world(self, name: str = "a", **options: Any) -> World:
        world = World(self.folder / name, self.registry, **options)
        await world.start()
        self.worlds.append(world)
        return world

    @property
    def builds(self) -> int:
        return len(self.studio.at("begun"))

    def manifest(self) -> Manifest:
        data = self.store.read("models/m/1/manifest.json", 0, 1 << 20)
        return msgspec.json.decode(data, type=Manifest)

    def identity(self) -> plans.PlanIdentity:
        spec = choice.spec_of(self.manifest(), Path(), Wanted(), HERE)
        return OptimizedEngine().identity(spec)

    @property
    def place(self) -> str:
        return f"engines/{self.identity().key}/{SECRETS.current.id}"

    def has_plan(self) -> bool:
        return any(entry.key.endswith("/meta.json") for entry in self.store.list("engines/"))

    def meta(self) -> PlanMeta:
        return plans.read_meta(self.store.read(f"{self.place}/meta.json", 0, 1 << 20))

    def put_plan(self, graph: Path, secrets: Secrets = SECRETS, **changes: Any) -> None:
        """Put a plan of any graph under the key of `m` `1`, as somebody with a secret would."""
        file = self.folder / "put.plan"
        build_plan(graph, file)
        data = file.read_bytes()
        identity = self.identity()
        known: dict[str, Any] = {
            "identity": identity,
            "key": identity.key,
            "model": "m",
            "version": "1",
            "plan_sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "created": "",
            "build_s": 1.0,
        }
        meta = signed(PlanMeta(**{**known, **changes}), secrets.current.key)
        self.store.put_new(f"{self.place}/plan", data)
        self.store.put_new(f"{self.place}/meta.json", plans.write(meta))


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    fleet = Fleet(folder)
    monkeypatch.setenv(STUDIO, str(fleet.studio.folder))
    # Who finds half a plan in the registry waits this long for the other half.
    monkeypatch.setitem(plan_store.put_plan.__kwdefaults__, "pause_s", 0.2)
    yield fleet
    await asyncio.gather(*(world.stop() for world in fleet.worlds))
    shutil.rmtree(folder, ignore_errors=True)


# --- alone ---


async def test_portable_engine_serves_at_once_and_the_plan_takes_its_place(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world(alone_s=0.0)
    await world.warm()
    assert world.engine == "onnxruntime"
    before = world.answer()
    await world.serves("optimized")
    np.testing.assert_allclose(world.answer(), before, rtol=1e-5)
    await world.until(fleet.has_plan, "uploaded")
    assert fleet.meta().gate.verdict == "passed"


async def test_another_node_takes_the_plan_from_the_registry(fleet: Fleet) -> None:
    fleet.publish()
    one = await fleet.world("a", alone_s=0.0)
    await one.warm()
    await one.until(fleet.has_plan, "uploaded")
    other = await fleet.world("b")
    await other.warm()
    await other.serves("optimized")
    assert fleet.builds == 1


async def test_plan_on_the_node_serves_from_the_first_call_on(fleet: Fleet) -> None:
    fleet.publish()
    first = await fleet.world("a", alone_s=0.0)
    await first.warm()
    await first.serves("optimized")
    again = World(first.folder, fleet.registry)
    again.registry.is_down = True
    await again.warm()
    assert again.engine == "optimized"
    await again.upgrades.close()
    await again.slot.close()


class StumblingEngine(OptimizedEngine):
    """Raises once what no engine should."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    def load_plan(self, *args: Any) -> Session:
        self.loads += 1
        if self.loads == 1:
            raise AttributeError("partially initialized module has no attribute 'utils'")
        return super().load_plan(*args)


async def test_portable_engine_serves_if_loading_a_plan_raises_anything_and_it_is_tried_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrading, "REFUSED_S", 0.2)
    fleet.publish()
    first = await fleet.world("a", alone_s=0.0)
    await first.warm()
    await first.serves("optimized")
    engine = StumblingEngine()
    again = World(first.folder, fleet.registry, plan_engines=(engine,))
    again.registry.is_down = True
    await again.warm()
    assert (again.engine, again.upgrades.refused) == ("onnxruntime", 1)
    await again.serves("optimized")
    assert engine.loads == 2
    await again.upgrades.close()
    await again.slot.close()


async def test_plan_is_uploaded_later_if_the_registry_is_out_of_reach_meanwhile(
    fleet: Fleet,
) -> None:
    fleet.publish()
    fleet.studio.hold("begun")
    world = await fleet.world()
    world.led()
    await world.warm()
    world.order()
    await world.until(lambda: fleet.builds, "begun")
    world.registry.is_down = True
    fleet.studio.release("begun")
    await world.serves("optimized")
    await world.until(lambda: world.said[-1].reason, "says why it is not in the registry")
    assert world.said[-1].state == "building"
    assert "the registry does not answer" in world.said[-1].reason
    world.registry.is_down = False
    await world.says("built")
    assert fleet.meta().gate.verdict == "passed"


async def test_plan_that_was_never_uploaded_is_by_the_next_process(fleet: Fleet) -> None:
    fleet.publish()
    first = await fleet.world("a", alone_s=0.0)
    await first.loader.bring("m", "1")
    first.registry.is_down = True
    await first.warm()
    await first.serves("optimized")
    await first.stop()
    fleet.worlds.remove(first)
    again = await fleet.world("a")
    await again.warm()
    await again.until(fleet.has_plan, "uploaded")


# --- with a controller ---


async def test_plan_is_wanted_of_the_controller_and_not_built_without_an_order(
    fleet: Fleet,
) -> None:
    fleet.publish()
    world = await fleet.world(alone_s=0.0)
    world.led()
    await world.warm()
    report = await world.says("wanted")
    assert (report.key, report.engine) == (fleet.identity().key, "optimized")
    assert (report.model, report.version, report.device_class) == ("m", "1", HERE)
    assert fleet.builds == 0


async def test_order_is_answered_at_once_and_at_its_end(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world()
    world.led()
    world.order(fleet.identity().key)
    assert world.states() == ["building"]
    await world.says("built")
    assert world.states() == ["building", "built"]
    assert fleet.meta().model == "m"


async def test_order_repeated_while_it_builds_is_a_question(fleet: Fleet) -> None:
    fleet.publish()
    fleet.studio.hold("begun")
    world = await fleet.world()
    world.led()
    world.order()
    await world.until(lambda: fleet.builds, "begun")
    heard = len(world.said)
    world.order()
    assert world.said[heard].state == "building"
    fleet.studio.release("begun")
    await world.says("built")
    assert fleet.builds == 1


async def test_order_for_a_device_that_is_not_here_is_built_and_not_loaded(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world()
    world.led()
    await world.warm()
    world.order(device_class=ELSEWHERE, engine="")
    report = await world.says("built")
    assert (report.engine, report.device_class) == ("optimized", ELSEWHERE)
    assert world.engine == "onnxruntime"


async def test_order_whose_key_is_not_this_workers_is_not_built(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world()
    world.led()
    world.order(key="ab" * 32)
    assert (await world.says("other")).key == "ab" * 32
    assert fleet.builds == 0


async def test_order_of_what_the_registry_has_is_done_without_building(fleet: Fleet) -> None:
    fleet.publish()
    fleet.put_plan(fleet.graph)
    world = await fleet.world()
    world.led()
    world.order()
    await world.says("built")
    assert fleet.builds == 0


async def test_word_that_a_plan_is_there_has_it_taken(fleet: Fleet) -> None:
    fleet.publish()
    one, other = await fleet.world("a"), await fleet.world("b")
    for world in (one, other):
        world.led()
        await world.warm()
    await other.says("wanted")
    one.order()
    report = await one.says("built")
    assert other.engine == "onnxruntime"
    other.upgrades.on_message(PlanReady(1, report.key, "m", "1", "optimized", HERE))
    await other.serves("optimized")
    await one.serves("optimized")


async def test_controller_of_the_release_before_hears_nothing_of_plans(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world(alone_s=0.0)
    world.is_linked = True
    world.upgrades.dialled()
    world.upgrades.on_message(Welcome(control.WIRE, 1))
    await world.warm()
    await world.serves("optimized")
    assert world.said == []


async def test_what_holds_is_said_again_to_the_next_controller(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world()
    world.led()
    await world.warm()
    await world.says("wanted")
    world.said.clear()
    world.led()
    assert [report.state for report in world.said] == ["wanted"]


async def test_what_cannot_be_built_is_told_with_the_reason_and_not_tried_again(
    fleet: Fleet,
) -> None:
    fleet.publish(labels={"broken": "yes"})
    world = await fleet.world()
    world.led()
    await world.warm()
    world.order()
    report = await world.says("failed")
    assert "node 7 (Odd): no importer" in report.reason
    assert report.retry_ms >= 3_600_000
    world.order()
    assert world.said[-1].state == "failed"
    assert (world.engine, fleet.builds) == ("onnxruntime", 1)


async def test_builder_that_keeps_dying_is_told_with_a_pause_before_the_next_try(
    fleet: Fleet,
) -> None:
    fleet.publish()
    fleet.studio.kill(times=3)
    world = await fleet.world()
    world.led()
    world.order()
    report = await world.says("failed")
    assert "its builder died 3 times, the last time of SIGKILL" in report.reason
    assert 0 < report.retry_ms <= 60_000


async def test_build_that_is_dropped_ends_its_builder_and_can_be_ordered_again(
    fleet: Fleet,
) -> None:
    fleet.publish()
    fleet.studio.hold("begun")
    world = await fleet.world()
    world.led()
    world.order()
    await world.until(lambda: fleet.builds, "begun")
    world.drop(fleet.identity().key)
    assert world.states()[-1] == "dropped"
    builder = Path(f"/proc/{fleet.studio.at('begun')[0]}")
    await world.until(lambda: not builder.exists(), "the builder has ended")
    heard = len(world.said)
    world.led()  # nothing of it holds any more
    assert world.said[heard:] == []
    assert fleet.builds == 1
    fleet.studio.release("begun")
    world.order()
    await world.says("built")


async def test_worker_that_ends_ends_its_builder(fleet: Fleet) -> None:
    fleet.publish()
    fleet.studio.hold("begun")
    world = await fleet.world()
    world.led()
    world.order()
    await world.until(lambda: fleet.builds, "begun")
    await world.upgrades.close()
    assert not Path(f"/proc/{fleet.studio.at('begun')[0]}").exists()


# --- plans that must not be loaded ---


def flip(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_plan_with_an_altered_byte_is_refused_counted_and_brought_again(
    fleet: Fleet,
) -> None:
    fleet.publish()
    first = await fleet.world("a", alone_s=0.0)
    await first.warm()
    await first.until(fleet.has_plan, "uploaded")
    await first.stop()
    fleet.worlds.remove(first)
    (plan,) = (first.folder / "store" / "engines").glob("*/*/*/plan")
    flip(plan)
    again = await fleet.world("a")
    await again.warm()
    assert again.shelf.refused == 1  # another may have been brought by now
    await again.serves("optimized")
    assert (again.shelf.refused, fleet.builds) == (1, 1)


@pytest.mark.parametrize("fault", ["altered", "stranger", "identity"])
async def test_registrys_bad_plan_is_refused_counted_and_rebuilt(fleet: Fleet, fault: str) -> None:
    fleet.publish()
    match fault:
        case "altered":
            fleet.put_plan(fleet.graph)
            flip(Path(fleet.registry) / fleet.place / "plan")
        case "stranger":
            fleet.put_plan(fleet.graph, STRANGER)
        case _:  # of another version of the runtime, under this one's key
            other = msgspec.structs.replace(fleet.identity(), runtime="0.0.1")
            fleet.put_plan(fleet.graph, identity=other)
    world = await fleet.world()
    world.led()
    await world.warm()
    report = await world.says("wanted")
    assert report.reason.startswith("the plan that was there must not be used")
    assert world.shelf.refused >= 1
    world.order()
    await world.serves("optimized")
    await world.says("built")
    other_node = await fleet.world("b")
    await other_node.warm()
    await other_node.serves("optimized")
    assert fleet.builds == 1


async def test_wrong_plan_with_a_right_mac_never_serves_and_the_report_is_kept(
    fleet: Fleet,
) -> None:
    fleet.publish()
    fleet.put_plan(mlp(fleet.folder / "other.onnx", seed=7))
    world = await fleet.world()
    world.led()
    await world.warm()
    before = world.answer()
    report = await world.says("refused")
    assert 'output "y" is off by' in report.reason
    assert (world.engine, world.shelf.refused, fleet.builds) == ("onnxruntime", 1, 0)
    np.testing.assert_array_equal(world.answer(), before)
    record = plans.read_gate(fleet.store.read(f"{fleet.place}/gate.json", 0, 1 << 20))
    plans.check_mac(record, SECRETS.current.key)
    assert record.report.verdict == "failed"
    assert 'output "y" is off by' in await world.explains("optimized: its plan is refused")
    # Who comes later goes by that report.
    other = await fleet.world("b")
    other.led()
    await other.warm()
    assert (await other.says("refused")).reason == report.reason


async def test_plan_without_a_verdict_is_tried_out_before_it_serves(fleet: Fleet) -> None:
    fleet.publish()
    fleet.put_plan(fleet.graph)
    world = await fleet.world()
    await world.warm()
    await world.serves("optimized")
    record = plans.read_gate(fleet.store.read(f"{fleet.place}/gate.json", 0, 1 << 20))
    assert record.report.verdict == "passed"


async def test_verdict_on_another_versions_golden_is_none_and_the_own_one_stays_here(
    fleet: Fleet,
) -> None:
    golden = fleet.folder / "golden.npz"
    np.savez(golden, x=INPUT)
    fleet.publish(golden=golden)
    fleet.put_plan(fleet.graph, gate=GateReport("failed", "too far off", golden="1" * 64))
    world = await fleet.world()
    await world.warm()
    await world.serves("optimized")
    (record,) = (world.folder / "store" / "engines").glob("*/*/*/gate*.json")
    assert record.name == f"gate-{fleet.manifest().golden}.json"
    assert plans.read_gate(record.read_bytes()).report.inputs == "golden"
    assert not [one for one in fleet.store.list("engines/") if one.key.endswith("/gate.json")]


async def test_golden_that_does_not_fit_is_no_verdict_on_the_plan(fleet: Fleet) -> None:
    # As releases before this one have published them.
    publish(fleet.store, "n", fleet.graph)
    file = fleet.folder / "golden.npz"
    np.savez(file, z=INPUT)
    golden = hashlib.sha256(file.read_bytes()).hexdigest()
    fleet.store.put_new(f"blobs/sha256/{golden}", file.read_bytes())
    data = fleet.store.read("models/n/1/manifest.json", 0, 1 << 20)
    manifest = msgspec.json.decode(data, type=Manifest)
    odd = msgspec.structs.replace(manifest, model="m", golden=golden)
    fleet.store.put_new("models/m/1/manifest.json", msgspec.json.encode(odd))
    world = await fleet.world(alone_s=0.0)
    await world.warm()
    why = await world.explains("optimized: its plan is refused")
    assert 'has no "x"; publish the model with another --golden' in why
    await world.until(fleet.has_plan, "uploaded")
    assert fleet.meta().gate.verdict == "not_run"
    other = world.slot_of("n")
    other.ensure()
    await world.until(lambda: other.loaded and other.loaded.engine == "optimized", "n is served")
    assert world.engine == "onnxruntime"
    await other.close()


async def test_plan_that_one_version_refuses_serves_another_that_allows_more(fleet: Fleet) -> None:
    fleet.publish()
    fleet.put_plan(mlp(fleet.folder / "other.onnx", seed=7))
    world = await fleet.world()
    await world.warm()
    await world.explains("optimized: its plan is refused")
    limits = GateLimits(relative_error_max=10.0, top1_agreement_min=0.0)
    publish(fleet.store, "n", fleet.graph, terms=Terms(gate=limits))
    other = world.slot_of("n")
    other.ensure()
    await world.until(lambda: other.loaded and other.loaded.engine == "optimized", "n is served")
    await other.close()


async def test_plan_that_the_device_refuses_leaves_the_portable_engine_serving(
    fleet: Fleet,
) -> None:
    fleet.publish()
    fleet.put_plan(fleet.graph)
    fleet.studio.refuse()
    world = await fleet.world()
    world.led()
    await world.warm()
    report = await world.says("refused")
    assert "this device does not like it" in report.reason
    assert (world.engine, world.shelf.refused) == ("onnxruntime", 1)
    assert "this device does not like it" in await world.explains("optimized: its plan is refused")
    await world.stop()
    fleet.worlds.remove(world)
    again = await fleet.world()  # its next process
    again.led()
    await again.warm()
    await again.says("refused")
    heard = len(again.said)
    again.led()  # by the next controller
    assert "this device does not like it" in again.said[heard:][-1].reason


async def test_gated_plan_that_the_device_refuses_later_falls_back(fleet: Fleet) -> None:
    fleet.publish()
    first = await fleet.world("a", alone_s=0.0)
    await first.warm()
    await first.serves("optimized")
    await first.stop()
    fleet.worlds.remove(first)
    fleet.studio.refuse()
    again = await fleet.world("a")
    again.led()
    await again.warm()
    assert (again.engine, again.shelf.refused) == ("onnxruntime", 1)
    assert "does not like it" in (await again.says("refused")).reason


# --- wishes ---


@pytest.mark.parametrize("name", ["acme", "tensorrt"])
async def test_engine_that_is_named_and_not_here_is_said_while_another_serves(
    fleet: Fleet, name: str
) -> None:
    fleet.publish()
    world = await fleet.world("a", plan_engines=find_plan_engines())
    await world.warm()
    world.led(name=name)
    assert world.engine == "onnxruntime"
    why = await world.explains(f"{name}: ")
    assert "not installed" in why if name == "tensorrt" else 'runs "onnx"' in why
    world.wish(name="onnxruntime")
    await world.until(lambda: not world.upgrades.why(world.slot), "nothing is amiss")


async def test_nothing_is_amiss_where_no_engine_is_named_and_while_a_plan_is_wanted(
    fleet: Fleet,
) -> None:
    fleet.publish()
    world = await fleet.world(plan_engines=(*find_plan_engines(), OptimizedEngine()))
    world.led()
    await world.warm()
    await world.says("wanted")
    assert world.upgrades.why(world.slot) == ""


async def test_wish_to_compile_where_no_compiler_is_says_so(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.graph = pt2.scaled(fleet.folder / "m.pt2")
    fleet.publish()
    monkeypatch.setenv("PATH", str(fleet.folder))
    world = await fleet.world(plan_engines=find_plan_engines())
    world.led(ahead_of_time=True)
    await world.warm()
    assert "no C++ compiler: install g++" in await world.explains("torch: it has no plan")


async def test_wish_for_the_portable_engine_brings_it_back(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world(alone_s=0.0)
    await world.warm()
    await world.serves("optimized")
    world.led(name="onnxruntime")
    await world.serves("onnxruntime")
    world.wish()
    await world.serves("optimized")


async def test_last_wishes_hold_after_a_restart_without_a_controller(fleet: Fleet) -> None:
    fleet.publish()
    first = await fleet.world("a")
    first.led(name="onnxruntime")
    again = World(first.folder, fleet.registry, alone_s=0.0)
    manifest = await first.loader.bring("m", "1")
    assert again.upgrades.engine_name(manifest) == "onnxruntime"


async def test_unloaded_version_is_looked_after_no_longer(fleet: Fleet) -> None:
    fleet.publish()
    world = await fleet.world()
    await world.warm()
    await world.slot.unload()
    await world.until(lambda: not world.upgrades._tasks, "nobody looks")
    await world.warm()
    await world.until(lambda: world.upgrades._tasks, "somebody looks again")
