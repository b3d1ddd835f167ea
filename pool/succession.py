"""How one worker process takes the place of another without a call's noticing.

    worker ── asks ──▶ supervisor ── starts ──▶ heir: loads what is hot, says that it is ready
    worker ◀── SIGTERM ── supervisor ◀──────────┘
    worker stops listening, says that it drains ──▶ supervisor ── go ──▶ heir: listens, registers

An heir that dies, or cannot load what is hot, changes nothing: the worker goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from pool import recycling
from pool.load_guard import guard_folder
from pool.recycling import Sample, State
from pool.slots import EngineSlot
from registry_sync.memory import proc_bytes
from registry_sync.supervised import ask_for_heir

LOOK_S: Final = 5.0
LAME_DUCK_S: Final = 0.1  # so long at least its heir has listened before a worker sends edges away
POLL_S: Final = 0.01

_log = structlog.get_logger()


class Will(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker leaves to its heir, in DATA/loading/<worker>/will.json."""

    hot: tuple[tuple[str, str], ...] = ()  # model and version, what was called last first
    interval_s: float = recycling.INTERVAL_S


_will_of = msgspec.json.Decoder(Will)


class Succession:
    """Asks for a successor when the process's memory does not come back.

    Args:
        data: the node's data folder.
        worker: its id.
        notice_fd: to the supervisor; -1 without one, and then nothing is asked.
        slack_bytes: see `recycling.look`.
    """

    def __init__(self, data: Path, worker: str, notice_fd: int, slack_bytes: int) -> None:
        self._path = guard_folder(data, worker) / "will.json"
        self._worker = worker
        self._notice_fd = notice_fd
        self._slack_bytes = slack_bytes
        # The whole mutable state: what an heir has inherited, what the process began with, the
        # policy's memory, and when it has asked last.
        self._will = Will()
        self._started_s = time.monotonic()
        self._base = memory_bytes()
        self._state = State()
        self.asked_s = -float("inf")

    @property
    def has_asked(self) -> bool:
        """Tell whether an heir may be under way."""
        return time.monotonic() - self.asked_s < recycling.INTERVAL_S

    async def inherit(self, slot_of: Callable[[str, str], EngineSlot]) -> bool:
        """Load what was hot in the predecessor; tell whether all of it is warm.

        What else it had is loaded when it is wanted.
        """
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self._will = _will_of.decode(await asyncio.to_thread(self._path.read_bytes))
        slots = [slot_of(*ref) for ref in self._will.hot]
        for slot in slots:
            slot.ensure()
        while any(slot.state == "loading" for slot in slots):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        for slot in slots:
            if slot.state != "warm":
                _log.error(
                    "cannot_inherit", model=slot.model, version=slot.version, error=slot.detail
                )
                return False
        return True

    def look(self, slots: Iterable[EngineSlot], calls_bytes: int, *, is_draining: bool) -> None:
        """Ask for a successor if the memory has not come back for long enough."""
        found = list(slots)
        sample = Sample(
            now_s=time.monotonic(),
            held=memory_bytes(),
            base=self._base,
            engines=sum(slot.loaded.session.memory_bytes for slot in found if slot.loaded),
            calls=calls_bytes,
            available=available_bytes(),
            is_busy=is_draining or self.has_asked or any(s.state == "loading" for s in found),
        )
        is_due, self._state = recycling.look(
            self._state,
            sample,
            started_s=self._started_s,
            interval_s=self._will.interval_s,
            slack_bytes=self._slack_bytes,
        )
        if is_due:
            _log.warning(
                "memory_does_not_come_back", held=sample.held, accounted=sample.held - sample.excess
            )
            self.ask(found)

    def ask(self, slots: Sequence[EngineSlot]) -> None:
        """Ask the supervisor for a successor that has loaded what is warm here."""
        warm = sorted((s for s in slots if s.state == "warm"), key=lambda s: -s.used_s)
        now_s = time.monotonic()
        will = Will(
            hot=tuple((slot.model, slot.version) for slot in warm),
            interval_s=recycling.next_interval_s(now_s - self._started_s, self._will.interval_s),
        )
        self.asked_s = now_s
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.write_bytes(msgspec.json.encode(will))
            partial.replace(self._path)
        except OSError as error:
            _log.warning("cannot_leave_a_will", error=error.strerror or str(error))
            return
        is_asked = ask_for_heir(self._notice_fd)
        _log.info("heir_wanted", worker=self._worker, hot=len(warm), is_asked=is_asked)


def memory_bytes() -> int:
    """Return this process's anonymous memory that is in RAM; 0 where the system does not say."""
    return proc_bytes(Path("/proc/self/status"), "RssAnon:")


def available_bytes() -> int:
    """Return how much memory this machine has left."""
    return proc_bytes(Path("/proc/meminfo"), "MemAvailable:")
