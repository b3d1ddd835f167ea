"""The audit trail of a controller's decisions on rollouts: one record for each of them.

A record follows from the state that the decision wrote, and its id with it; so it is written after
the decision, beside it, and by whoever leads then: again when the registry was away, and by the
next controller if one was killed in between.  A decision never waits for its record, nor fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import structlog

from pool.rollouts.policy import decided, e_of
from registry_sync import audit
from registry_sync.documents import EndpointState
from registry_sync.rollout_terms import RolloutState
from registry_sync.stores import Store, StoreError, StoreUnavailable

AGE_MAX: Final = timedelta(days=1)  # of a decision whose record another controller may owe
DUE_MAX: Final = 1000  # records that wait for the registry
AGAIN_S: Final = 5.0
_REASON_CHARS: Final = 600  # of a record's `why`; the evidence has the rest

_log = structlog.get_logger()


def record_of(name: str, document: EndpointState) -> audit.Record:
    """Return the record of the decision that a state is the outcome of."""
    state = document.rollout
    assert state is not None, "the state is one of a rollout"
    what, after = decided(state), _standing(state.step, document.weights)
    if what == "begin":
        before = ""
    elif what in ("pause", "resume"):
        before = after
    elif state.segments:
        before = _standing(state.segments[-1].step, state.segments[-1].weights)
    else:
        before = _standing(0, {})
    evidence = evidence_line(state)
    reason = state.reason[:_REASON_CHARS]
    return audit.record_at(
        state.at,
        audit.Actor("controller", f"epoch {state.epoch}", _line(f"{reason}; {evidence}")),
        f"rollout.{what}",
        name,
        before=before,
        after=after,
    )


def evidence_line(state: RolloutState) -> str:
    """Say in one line what a decision was made on."""
    evidence = state.evidence
    if evidence is None:
        return "nothing was compared"
    arms: dict[str, dict[str, int]] = evidence.get("arms", {})
    seen = [
        f"{arm} {counts.get('errors', 0):,} of {counts.get('calls', 0):,} calls failed"
        + (f", {counts['slow']:,} slow" if counts.get("slow") else "")
        for arm, counts in arms.items()
    ]
    log_e: dict[str, Any] = evidence.get("log_e", {})
    seen += [f"{guard} e {e_of(value):.3g}" for guard, value in log_e.items()]
    held = f"in {evidence.get('held_s', 0.0):.1f} s of this step"
    return f"{held}: {'; '.join(seen)}" if seen else "nothing was compared"


class Trail:
    """Writes the records of all rollouts' decisions, one at a time.

    Args:
        store: the registry.
        leads: whether this controller leads; whoever does not, writes nothing.
    """

    def __init__(self, store: Store, leads: Callable[[], bool]) -> None:
        self._store = store
        self._leads = leads
        # The whole mutable state: of each endpoint the last decision that was seen, the records
        # that are owed, oldest first, and from when on they may be written.
        self._seen: dict[str, str] = {}
        self._due: dict[tuple[str, str], audit.Record] = {}
        self._from_s = float("-inf")
        self._writing: asyncio.Task[None] | None = None

    def on_states(self, states: Mapping[str, EndpointState]) -> None:
        """Take note of the decisions that hold; those that are new are owed a record."""
        for name in self._seen.keys() - states.keys():
            del self._seen[name]
        for name, document in states.items():
            state = document.rollout
            if state is None or not state.at:
                continue
            # Two decisions may fall on one millisecond.
            tag = f"{state.id} {state.at} {state.segment} {state.step} {state.state}"
            if self._seen.get(name) == tag:
                continue
            self._seen[name] = tag
            try:
                if _is_recent(state.at):
                    self._due[name, tag] = record_of(name, document)
            except Exception:
                _log.exception("bug")  # in what is for people only; the rollout goes on
        while len(self._due) > DUE_MAX:
            self._lose(next(iter(self._due)), "too many records wait for the registry")
        self.round()

    def round(self) -> None:
        """Write what is owed, unless the registry was away just now."""
        loop = asyncio.get_running_loop()
        if self._due and self._writing is None and loop.time() >= self._from_s:
            self._writing = loop.create_task(self._write())

    async def finish(self, s_max: float) -> None:
        """Wait until what can be written is."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=s_max)

    def reset(self) -> None:
        """Forget everything: somebody else leads, and owes what was not written."""
        self._seen.clear()
        self._due.clear()
        self._from_s = float("-inf")

    async def _write(self) -> None:
        try:
            while self._due and self._leads():
                key, record = next(iter(self._due.items()))
                try:
                    await asyncio.to_thread(audit.append_once, self._store, record, key[1])
                except StoreUnavailable:
                    self._from_s = asyncio.get_running_loop().time() + AGAIN_S
                    return
                except StoreError as error:
                    self._lose(key, str(error))
                else:
                    self._due.pop(key, None)
        except Exception:
            _log.exception("bug")
            for key in list(self._due):  # or it would be met again and again
                self._lose(key, "a bug, see above")
        finally:
            self._writing = None

    def _lose(self, key: tuple[str, str], error: str) -> None:
        record = self._due.pop(key, None)
        if record is not None:
            shown = msgspec.json.encode(record).decode()
            _log.error("audit_record_lost", record=shown, error=error)


def _is_recent(at: str) -> bool:
    return datetime.now(UTC) - datetime.fromisoformat(at) < AGE_MAX


def _standing(step: int, weights: Mapping[str, float]) -> str:
    shares = ", ".join(f"{arm} {weight:g} %" for arm, weight in weights.items())
    return (f"step {step}: {shares}" if shares else f"step {step}")[: audit.SHORT_CHARS_MAX]


def _line(text: str) -> str:
    """Return `text` as a record's `why` may be."""
    return "".join(c if c.isprintable() else " " for c in text)[: audit.REASON_CHARS_MAX]
