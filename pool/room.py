"""Makes room in a device's memory before an engine is loaded.

Carries out what `scaling.residency` decides.  A bound that an operator has set is kept; what the
device itself has is a guess about what an engine takes, which nobody is refused on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import structlog

from pool.engines.device_memory import available_bytes, total_bytes
from pool.loaded import NoRoom
from pool.phases import ROOM, enter
from pool.scaling import residency
from pool.scaling.residency import Ref, Resident, Use
from pool.slots import EngineSlot
from registry_sync.documents import Manifest

ROOM_S_MAX: Final = 1.0  # so long a call waits for those in use; then another worker is asked
POLL_S: Final = 0.02
HEADROOM: Final = 1 / 16  # of a device's memory, for what is computed in it
WAKE_S: Final = 1.0  # where it is not known
KNOWN_MAX: Final = 4096  # versions whose use and size are remembered

_log = structlog.get_logger(__name__)


class Room:
    """The memory for engines of one worker.

    Args:
        device: its name.
        bytes_max: for all engines together; 0: what the device has.
        slots: the places of all versions.
    """

    def __init__(
        self, device: str, bytes_max: int, slots: Callable[[], Mapping[Ref, EngineSlot]]
    ) -> None:
        self._device = device
        self._bytes_max = bytes_max
        self._slots = slots
        # The whole mutable state: how versions are used, what they took when they were loaded
        # last, and what loads under way will take.
        self._uses: dict[Ref, Use] = {}
        self._sizes: dict[Ref, int] = {}
        self._reserved: dict[Ref, int] = {}
        self._deciding = asyncio.Lock()

    @property
    def bytes_max(self) -> int:
        """What there is for engines; 0: not known."""
        return self._bytes_max or total_bytes(self._device)

    def look(self) -> None:
        """Take note of how engines are used; for every heartbeat, and when a load is over."""
        now_s = time.monotonic()
        for ref, slot in self._slots().items():
            if slot.loaded is not None:
                self._sizes[ref] = slot.loaded.session.memory_bytes
            if slot.loaded is not None or ref in self._uses:
                self._uses[ref] = self._uses.get(ref, Use()).seen(now_s, slot.arrived)
        for known in (self._uses, self._sizes):
            while len(known) > KNOWN_MAX:
                del known[next(iter(known))]

    def bytes_of(self, ref: Ref) -> int:
        """Return what a version takes, or will once its load is over."""
        slot = self._slots().get(ref)
        if slot is not None and slot.loaded is not None:
            return slot.loaded.session.memory_bytes
        return self._reserved.get(ref, 0)

    @asynccontextmanager
    async def taken(self, manifest: Manifest) -> AsyncIterator[None]:
        """Make room for a version, and keep it free for the load meanwhile.

        Raises:
            NoRoom: what is in use, or the bound, leaves none.
        """
        ref = (manifest.model, manifest.version)
        # An engine holds its weights, whose size its files tell until it has been loaded once.
        size = self._sizes.get(ref) or sum(file.bytes for file in manifest.files)
        await self._make(ref, size)
        try:
            yield
        finally:
            del self._reserved[ref]

    async def _make(self, ref: Ref, size: int) -> None:
        while True:
            async with self._deciding:
                decision = await self._decide(ref, size)
                while isinstance(decision, residency.Room) and decision.leaving:
                    enter(ROOM)
                    _log.info("engines_make_room", newcomer=ref, leaving=decision.leaving)
                    # One that is called meanwhile stays.
                    await asyncio.gather(*(self._slots()[one].unload() for one in decision.leaving))
                    if not self._bytes_max:
                        break  # whether the device shows it at once is up to its libraries
                    decision = await self._decide(ref, size)
                if isinstance(decision, residency.Room) or not self._bytes_max:
                    self._reserved[ref] = size
                    return
            why = self._why(size, decision)
            if not decision.is_final:
                self._slots()[ref].wait_no_longer(why, ROOM_S_MAX)
            if decision.is_final or not self._is_waited_for(ref):
                raise NoRoom(why)
            enter(ROOM)
            await asyncio.sleep(POLL_S)

    def _is_waited_for(self, ref: Ref) -> bool:
        return self._slots()[ref].waiting > 0

    async def _decide(self, ref: Ref, size: int) -> residency.Decision:
        residents = self._residents()
        bytes_max = self._bytes_max
        if not bytes_max:
            total, free = await asyncio.to_thread(
                lambda: (total_bytes(self._device), available_bytes(self._device))
            )
            if not total:
                return residency.Room()
            held = sum(resident.bytes for resident in residents)
            bytes_max = held + max(0, free - int(HEADROOM * total))
        newcomer = self._resident(ref, size, is_busy=True)
        return residency.decide(
            newcomer, residents, bytes_max, is_waited_for=self._is_waited_for(ref)
        )

    def _residents(self) -> list[Resident]:
        slots = self._slots()
        there = [
            self._resident(
                ref,
                slot.loaded.session.memory_bytes,
                is_busy=slot.calls > 0 or slot.state != "warm",
            )
            for ref, slot in slots.items()
            if slot.loaded is not None
        ]
        coming = [
            self._resident(ref, size, is_busy=True)
            for ref, size in self._reserved.items()
            if slots[ref].loaded is None
        ]
        return [*there, *coming]

    def _resident(self, ref: Ref, size: int, *, is_busy: bool) -> Resident:
        now_s = time.monotonic()
        slot = self._slots()[ref]
        use = self._uses.get(ref, Use()).seen(now_s, slot.arrived)
        return Resident(ref, size, use.per_s(now_s), slot.wake_s or WAKE_S, is_busy)

    def _why(self, size: int, decision: residency.NoRoom) -> str:
        limit = f"the {_mib(self._bytes_max)} that this worker may use (--memory-bytes-max)"
        if decision.is_final:
            return f"the model takes about {_mib(size)}, more than {limit}"
        return (
            f"the model takes about {_mib(size)}, and models in use hold "
            f"{_mib(decision.missing_bytes)} too much of {limit}"
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
