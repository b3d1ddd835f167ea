"""What comes of a load, and why nothing does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from pool.engines.base import EngineError, Session, reason_of
from pool.phases import DESERIALISE, WARM_UP, enter
from registry_sync.documents import Manifest
from registry_sync.memory import give_back
from registry_sync.plans import PlanIdentity

GIVE_BACK_BYTES_MIN: Final = 8 << 20  # below, it takes longer than it is worth

_log = structlog.get_logger()


class CannotLoad(Exception):
    """Why a version cannot be had in this worker; the text is for the caller.

    `passes`: it is not the version's fault, and may be over any moment.
    """

    def __init__(self, text: str, *, passes: bool = False) -> None:
        super().__init__(text)
        self.passes = passes


class NoRoom(CannotLoad):
    """It does not fit beside what is in use here; another worker may have room."""


class Loaded(msgspec.Struct, frozen=True):
    """What came of a load."""

    manifest: Manifest
    digest: str
    session: Session
    engine: str
    datatypes: dict[str, str]  # of the outputs, by name
    identity: PlanIdentity | None = None  # of the plan that it was loaded from

    @property
    def plan(self) -> str:
        """The plan's key; empty: it was loaded from the artifact alone."""
        return self.identity.key if self.identity is not None else ""


def difference(old: Loaded, new: Loaded) -> str:
    """Say what keeps `new` from answering in the place of `old`; empty if nothing does."""
    if new.digest != old.digest:
        return "it is made from another artifact"
    if new.datatypes != old.datatypes:
        return f"its outputs are {new.datatypes}, not {old.datatypes}"
    if new.session.streams != old.session.streams:
        return "only one of them answers in pieces"
    return ""


def load_session(load: Callable[[], Session]) -> Session:
    """Load and warm up, or leave the memory as it was.

    Raises:
        CannotLoad: with a text for the caller.
    """
    try:
        return _load_session(load)
    except EngineError as error:
        why = str(error)
    except MemoryError:
        why = "there is not enough memory for it"
    except Exception as error:
        # A library may raise anything: that engine is not to be had, and another may be.
        _log.exception("bug")
        why = reason_of(error)
    # Only now is nothing left that refers to what was half loaded.
    give_back()
    raise CannotLoad(why)


def _load_session(load: Callable[[], Session]) -> Session:
    enter(DESERIALISE)
    session = load()
    enter(WARM_UP)
    try:
        session.warmup()
    except BaseException:
        session.close()  # or every further try would cost its memory again
        raise
    if session.memory_bytes >= GIVE_BACK_BYTES_MIN:
        give_back()  # a load has more in its hands for a while than it keeps
    return session
