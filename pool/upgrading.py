"""Which engine serves a version in this worker: the best that is ready, and better ones later.

    load ─▶ the best whose plan is here and passed ─ none ─▶ the portable one
    warm ─▶ here? ─▶ in the registry? ─▶ wanted (the controller has one worker build it)
              └──────────┴─▶ passed the gate ─▶ loaded ─▶ swapped in
    a wish that no longer fits, a plan that is refused ─▶ the next best, at last the portable one

Without a controller the worker builds what it wants by itself, after a pause.
Owns the tasks that look for better engines, one for each warm version.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
import structlog

from pool.build_work import BuildWork, Reports, Target, report_of
from pool.engines import choice
from pool.engines.base import BuildSpec, CannotBuild, reason_of
from pool.engines.choice import Option
from pool.engines.probes import Devices
from pool.loaded import CannotLoad, Loaded
from pool.plan_shelf import Missing, PlanShelf, Ready, Refused, Unknown
from pool.slots import EngineSlot
from pool.wanted import wanted_of
from pool.wire import control
from registry_sync.builds import Wanted
from registry_sync.documents import Manifest
from registry_sync.local import LocalStore

LOOK_S: Final = 30.0  # between looks at what is on the node, while a plan is missing
ASK_S: Final = 3600.0  # between questions to the registry that nothing has caused
REFUSED_S: Final = 300.0  # before a plan that this device refused is tried again; doubled each time
REFUSED_S_MAX: Final = 24 * 3600.0
UNKNOWN_S: Final = 10.0  # before a registry that did not answer is asked again
WISHES: Final = "engine-wishes.last"

# Plan key, model, version: another version of the same artifact may allow what this one does not.
_HeldFor: TypeAlias = tuple[str, str, str]

_log = structlog.get_logger()
_wishes_of = msgspec.msgpack.Decoder(dict[str, bytes])
_wanted_of = msgspec.json.Decoder(Wanted)


@dataclass
class _Held:
    """A plan that was refused: until when, how often, and why."""

    until_s: float
    pause_s: float
    reason: str


class Upgrades:
    """Looks for better engines for whatever is warm.

    Args:
        devices: of this worker.
        shelf: the plans it can reach.
        local: the node's artifacts.
        bring: brings a version to the node; raises `CannotLoad`.
        portable: loads a version with the engine that needs no plan; raises `CannotLoad`.
        send: to the controller; tells whether there is one.
        is_linked: whether a controller is there.
        alone_s: without a controller, before it builds by itself.
    """

    def __init__(
        self,
        devices: Devices,
        shelf: PlanShelf,
        local: LocalStore,
        *,
        bring: Callable[[str, str], Awaitable[Manifest]],
        portable: Callable[[Manifest, str], Loaded],
        send: Callable[[control.Message], bool],
        is_linked: Callable[[], bool],
        alone_s: float,
    ) -> None:
        self._devices = devices
        self._shelf = shelf
        self._local = local
        self._bring = bring
        self._portable = portable
        self._send = send
        self._is_linked = is_linked
        self._alone_s = alone_s * random.uniform(1.0, 1.5)  # of several, one builds first
        self._reports = Reports(self._report)
        self.work = BuildWork(shelf, self._option_of, self._reports, self._on_plan)
        # The whole mutable state: what the endpoints want, the tasks of warm slots and what wakes
        # them, plans that were refused, why nothing better serves, when the registry was asked for
        # which plan, whether the controller knows of plans, and since when there is none that does.
        self._wishes = self._last_wishes()
        self._tasks: dict[EngineSlot, asyncio.Task[None]] = {}
        self._news: dict[EngineSlot, asyncio.Event] = {}
        self._held: dict[_HeldFor, _Held] = {}
        self._whys: dict[EngineSlot, str] = {}
        self._unloadable: list[tuple[Option, str]] = []  # by threads that load
        self._asked_s: dict[str, float] = {}
        self._is_desk = False
        self._alone_since_s: float | None = None

    # what the worker asks

    @property
    def builds(self) -> tuple[str, ...]:
        """What can be built here: "engine/device class"."""
        return self._devices.builds

    @property
    def refused(self) -> int:
        """How many plans were refused."""
        return self._shelf.refused

    def best_here(self, manifest: Manifest) -> Loaded | None:
        """Load the best engine whose plan is on this node; None if that is none.  Blocks."""
        options, _ = self._options(manifest)
        now_s = time.monotonic()
        due = [option for option in options if self._is_due(option, now_s)]
        return self._shelf.best_here(due, lambda *refused: self._unloadable.append(refused))

    def engine_name(self, manifest: Manifest) -> str:
        """Return the engine's name that is wished for; "auto" if none is."""
        return self._wanted(manifest).engine.name

    def why(self, slot: EngineSlot) -> str:
        """Say why what is wished for does not serve a warm slot; empty if nothing is amiss."""
        return self._whys.get(slot, "")

    def look(self, slots: Iterable[EngineSlot]) -> None:
        """Take note that a slot's state may have changed."""
        for slot in slots:
            if slot.state == "warm" and slot not in self._tasks and self._devices.engines:
                self._news[slot] = asyncio.Event()
                task = asyncio.get_running_loop().create_task(self._pursue(slot))
                self._tasks[slot] = task
                task.add_done_callback(functools.partial(self._leave, slot))
            elif slot.state != "warm" and slot in self._news:
                self._news[slot].set()

    def dialled(self) -> None:
        """A controller is registered with; whether it knows of plans, its first wishes show.

        One of the release before would hang up on what it does not know.
        """
        self._is_desk = False

    def on_message(self, message: control.Message) -> None:
        """Take what the controller says; anything that is not about plans is passed over."""
        match message:
            case control.Wishes(wishes=wishes):
                if not self._is_desk:
                    self._is_desk = True
                    self._reports.again()
                    self._wake()
                if wishes != self._wishes:
                    self._wishes = wishes
                    self._keep_wishes()
                    self._wake()
            case control.Build():
                self.work.take(message)
            case control.PlanReady(key=key):
                self._on_plan(key)

    async def close(self) -> None:
        """Give up looking and building."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.work.close()

    # one slot

    async def _pursue(self, slot: EngineSlot) -> None:
        """Look for something better whenever there is news, for as long as the slot is warm."""
        news = self._news[slot]
        while slot.state == "warm":
            news.clear()
            try:
                pause_s = await self._improve(slot)
            except Exception:
                # What serves goes on serving, whatever happened to what should replace it.
                _log.exception("bug", model=slot.model, version=slot.version)
                pause_s = REFUSED_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await news.wait()

    async def _improve(self, slot: EngineSlot) -> float | None:
        """Swap the best engine in that is ready now; return when to look again, None: on news."""
        loaded = slot.loaded
        if loaded is None:
            return None
        while self._unloadable:
            self._hold(*self._unloadable.pop())
        options, why_not_others = await asyncio.to_thread(self._options, loaded.manifest)
        refused: list[str] = []
        try:
            return await self._climb(slot, loaded, options, refused)
        finally:
            self._note_why(slot, why_not_others, refused, is_known=bool(options))

    async def _climb(
        self, slot: EngineSlot, loaded: Loaded, options: list[Option], refused: list[str]
    ) -> float | None:
        """See to the best option first; note in `refused` what stands in the way of others."""
        pauses_s: list[float] = []
        for option in options:
            if loaded.identity == option.identity:
                await self._shelf.note_use(loaded)
                return min(pauses_s, default=None)
            pause_s = await self._try(slot, option)
            if slot.loaded is None:
                return None
            if pause_s is None:
                self._reports.forget(option.key)
                await self._shelf.note_use(slot.loaded)
                return min(pauses_s, default=None)
            pauses_s.append(pause_s)
            refused += self._why_not(option)
            loaded = slot.loaded
        if loaded.identity is not None and not _still_fits(loaded, options):
            await self._fall_back(slot, loaded.manifest)
        return min(pauses_s, default=None)

    async def _try(self, slot: EngineSlot, option: Option) -> float | None:
        """Let an option serve if it can; return None if it does, else when to try again."""
        now_s = time.monotonic()
        held = self._held.get(_held_for(option))
        if held is not None and not self._is_due(option, now_s):
            return held.until_s - now_s
        ask = now_s >= self._asked_s.get(option.key, 0.0) + ASK_S
        if ask:
            self._asked_s[option.key] = now_s
        found = await self._shelf.get(option, ask=ask)
        match found:
            case Ready(plan):
                try:
                    loaded = await asyncio.to_thread(self._shelf.load, option, plan)
                    await slot.swap(loaded)
                except CannotLoad as error:
                    self._shelf.refuse(option, str(error))
                    return self._hold(option, str(error))
                self._held.pop(_held_for(option), None)
                return None
            case Refused(reason, is_final):
                return self._hold(option, reason, is_final=is_final)
            case Unknown(reason):
                _log.info("plan_not_known", key=option.key, reason=reason)
                self._asked_s.pop(option.key, None)
                return min(self._want(option, reason), UNKNOWN_S)
            case Missing(reason):
                return self._want(option, reason)

    def _want(self, option: Option, reason: str) -> float:
        """Say that a plan is wanted, or build it if nobody can be told."""
        now_s = time.monotonic()
        if self._is_desk and self._is_linked():
            self._alone_since_s = None
            self._reports.say(report_of(option, "wanted", reason))
            return LOOK_S
        if self._alone_since_s is None:
            self._alone_since_s = now_s
        left_s = self._alone_since_s + self._alone_s - now_s
        if left_s > 0:
            return left_s
        probe = self._devices.probes[option.engine.name]
        if option.spec.device_class in probe.builds_for:
            self.work.begin(_target_of(option), option.key)
        return LOOK_S

    def _hold(self, option: Option, reason: str, *, is_final: bool = False) -> float:
        held = self._held.get(_held_for(option))
        pause_s = REFUSED_S_MAX if is_final else REFUSED_S if held is None else 2 * held.pause_s
        pause_s = min(pause_s, REFUSED_S_MAX)
        self._held[_held_for(option)] = _Held(time.monotonic() + pause_s, pause_s, reason)
        self._reports.say(report_of(option, "refused", reason))
        return pause_s

    async def _fall_back(self, slot: EngineSlot, manifest: Manifest) -> None:
        """Let the portable engine serve: what serves now is not what is wished for."""
        try:
            loaded = await asyncio.to_thread(self._portable, manifest, self.engine_name(manifest))
            await slot.swap(loaded)
        except CannotLoad as error:
            _log.error("no_engine_to_fall_back_on", model=slot.model, error=str(error))

    def _why_not(self, option: Option) -> list[str]:
        """Say why an option does not serve that nobody need wait for."""
        held, probe = self._held.get(_held_for(option)), self._devices.probes[option.engine.name]
        if held is not None:
            return [f"{probe.name}: its plan is refused: {held.reason}"]
        if option.spec.device_class in probe.builds_for:
            return []
        return [f"{probe.name}: it has no plan, and can build none here: {probe.reason}"]

    def _note_why(
        self, slot: EngineSlot, why_not_others: str, refused: list[str], *, is_known: bool
    ) -> None:
        """Keep why nothing better serves; log it whenever that is news."""
        if slot.loaded is None:
            return
        manifest, serving = slot.loaded.manifest, slot.loaded.engine
        wish = self._wanted(manifest).engine
        is_named = wish.name not in ("auto", serving)
        if is_named and not is_known and not why_not_others:
            why_not_others = f'{wish.name}: no engine of this name here runs "{manifest.format}"'
        is_wished = is_named or wish.ahead_of_time
        why = "; ".join(filter(None, [why_not_others if is_wished else "", *refused]))
        if why and self._whys.get(slot) != why:
            _log.warning("engine_unavailable", model=slot.model, version=slot.version, reason=why)
        self._whys[slot] = why

    # what is wanted

    def _wanted(self, manifest: Manifest) -> Wanted:
        data = self._wishes.get(f"{manifest.model}/{manifest.version}")
        if data is not None:
            try:
                return _wanted_of.decode(data)
            except msgspec.DecodeError as error:
                _log.warning("wish_unreadable", model=manifest.model, error=str(error))
        return wanted_of(manifest)

    def _options(self, manifest: Manifest) -> tuple[list[Option], str]:
        if self._shelf.secrets is None:
            return [], "plans need a fleet secret, and this node has none"
        return choice.options(self._devices.engines, self._devices.probes, self._spec(manifest))

    def _spec(self, manifest: Manifest, device_class: str = "") -> BuildSpec:
        folder = self._local.folder_of(manifest)
        return choice.spec_of(manifest, folder, self._wanted(manifest), device_class)

    async def _option_of(self, target: Target) -> Option:
        model, version, engine, device_class = target
        manifest = await self._bring(model, version)

        def find() -> Option:
            spec = self._spec(manifest, device_class)
            return choice.option_for(self._devices.engines, self._devices.probes, spec, engine)

        try:
            return await asyncio.to_thread(find)
        except (OSError, ValueError) as error:
            raise CannotBuild(reason_of(error)) from error

    # news

    def _report(self, report: control.BuildReport) -> None:
        if self._is_desk:
            self._send(report)

    def _on_plan(self, key: str) -> None:
        """A plan has come: to this node, or to the registry."""
        self._asked_s.pop(key, None)
        self._held = {one: held for one, held in self._held.items() if one[0] != key}
        self._wake()

    def _wake(self) -> None:
        for news in self._news.values():
            news.set()

    def _is_due(self, option: Option, now_s: float) -> bool:
        held = self._held.get(_held_for(option))
        return held is None or now_s >= held.until_s

    def _leave(self, slot: EngineSlot, _: asyncio.Task[None]) -> None:
        self._tasks.pop(slot, None)
        self._news.pop(slot, None)
        self._whys.pop(slot, None)

    def _last_wishes(self) -> Mapping[str, bytes]:
        """Return the wishes from before a restart: there may be no controller to tell them."""
        try:
            data = self._local.load_document(WISHES)
            return {} if data is None else _wishes_of.decode(data)
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("last_wishes_unreadable", error=str(error))
            return {}

    def _keep_wishes(self) -> None:
        with contextlib.suppress(OSError):  # costs the copy, not the service
            self._local.save_document(WISHES, msgspec.msgpack.encode(self._wishes))


def _held_for(option: Option) -> _HeldFor:
    manifest = option.spec.manifest
    return (option.key, manifest.model, manifest.version)


def _target_of(option: Option) -> Target:
    manifest = option.spec.manifest
    return (manifest.model, manifest.version, option.engine.name, option.spec.device_class)


def _still_fits(loaded: Loaded, options: list[Option]) -> bool:
    """Tell whether an engine may go on until the one that is wished for now is there."""
    identity = loaded.identity
    return identity is None or any(
        (one.identity.engine, one.identity.precision) == (identity.engine, identity.precision)
        for one in options
    )
