"""The controller's hand on rollouts: hears the edges' evidence, and writes down what follows.

What follows, `policy` decides out of what the guards say.  A decision is one compare-and-swap of
the endpoint's state, which fails unless what is stored is still what was decided on; so nobody
acts twice, however many controllers there are and wherever one of them was killed.  What could not
be written is decided again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from msgspec.structs import replace

from pool.registry_watch import Snapshot
from pool.rollouts import policy
from pool.rollouts.eprocess import mismatch_log_e
from pool.rollouts.evidence import EvidenceBook
from pool.rollouts.guards import Guards
from pool.rollouts.needs import Warmth
from pool.rollouts.report import ArmFigures, report
from pool.rollouts.shadow_view import ShadowView
from pool.rollouts.signals import ArmCounts, Look, Move, Verdict
from pool.rollouts.trail import Trail, evidence_line
from pool.wire.control import ArmEvidence, ShadowReport
from registry_sync import endpoints
from registry_sync.documents import EndpointSpec, EndpointState
from registry_sync.rollout_terms import Rollout, RolloutState
from registry_sync.rollouts import effective_weights, is_live, state_of
from registry_sync.stores import Store, StoreError

GATHER_S: Final = 0.1  # evidence of so long is looked at together
AGAIN_S: Final = 1.0  # after a decision could not be made, or was not seen to hold

_log = structlog.get_logger()


class _Outrun(Exception):
    """What is stored is not what was decided on."""


@dataclass(slots=True)
class _Watched:
    """An endpoint with a rollout, as the documents have it."""

    spec: EndpointSpec
    document: EndpointState | None
    state: RolloutState | None
    weights: Mapping[str, float]
    seq: int  # of the documents that brought these weights
    guards: Guards | None  # None: there is nothing to compare
    counts: Mapping[str, ArmCounts]
    verdict: Verdict
    mismatch_log_e: float = 0.0
    held_from_s: float | None = None  # since when every live edge goes by these weights

    @property
    def rollout(self) -> Rollout:
        """What is wished."""
        assert self.spec.rollout is not None
        return self.spec.rollout

    @property
    def segment(self) -> tuple[str, int]:
        """The rollout and its segment: as long as it is the same, so are the weights."""
        return self.rollout.id, -1 if self.state is None else self.state.segment

    @property
    def is_live(self) -> bool:
        """Whether anything may follow still."""
        return is_live(self.spec, self.document)


class RolloutDesk:
    """All rollouts of one controller.

    Args:
        store: the registry.
        leads: whether this controller leads, as it did when it began to act; asked in threads too.
        epoch: of its reign.
        poll: looks at the registry, and tells all edges what changed.
        is_lagging: whether a live edge does not go yet by the documents of that number.
        warmth: how far the candidate of an endpoint is.
    """

    def __init__(
        self,
        store: Store,
        *,
        leads: Callable[[], bool],
        epoch: Callable[[], int],
        poll: Callable[[], Awaitable[object]],
        is_lagging: Callable[[int], bool],
        warmth: Callable[[str], Warmth],
    ) -> None:
        self._store = store
        self._leads = leads
        self._epoch = epoch
        self._poll = poll
        self._is_lagging = is_lagging
        self._warmth = warmth
        # The whole mutable state: what was counted, who is watched by endpoint, which decisions
        # are being written, and when one that could not be made or written is tried again.
        self._book = EvidenceBook()
        self._shadows = ShadowView()
        self._trail = Trail(store, leads)
        self._watched: dict[str, _Watched] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._again_s: dict[str, float] = {}
        self._news: set[str] = set()  # endpoints whose evidence was not looked at yet
        self._timer: asyncio.TimerHandle | None = None

    # what is told

    def on_documents(self, snapshot: Snapshot, seq: int) -> None:
        """Take note of the documents that hold; `seq` is what edges confirm once they have them."""
        self._trail.on_states(snapshot.states)
        specs = {n: spec for n, spec in snapshot.specs.items() if spec.rollout is not None}
        for name in self._watched.keys() - specs.keys():
            del self._watched[name]
            self._book.forget(name)
            self._again_s.pop(name, None)
        for name, spec in specs.items():
            document = snapshot.states.get(name)
            old = self._watched.get(name)
            if old is None or (old.spec, old.document) != (spec, document):
                self._watched[name] = self._watch(old, spec, document, seq)
                self._news.add(name)

    def _watch(
        self, old: _Watched | None, spec: EndpointSpec, document: EndpointState | None, seq: int
    ) -> _Watched:
        weights, state = effective_weights(spec, document), state_of(spec, document)
        new = _Watched(spec, document, state, weights, seq, None, {}, Verdict())
        if old is not None and old.segment == new.segment:
            new.seq, new.held_from_s = old.seq, old.held_from_s
        if state is None:
            return new
        self._book.follow(spec.endpoint, *new.segment)
        if old is not None and _watches(old) == _watches(new):
            new.guards, new.counts, new.verdict = old.guards, old.counts, old.verdict
            new.mismatch_log_e = old.mismatch_log_e
        elif state.step:
            new.guards = _guards(new, state)
            new.verdict = new.guards.verdict()
        if not new.is_live:
            self._book.settle(spec.endpoint)
        return new

    def report(self, incarnation: str, arms: tuple[ArmEvidence, ...]) -> None:
        """Take what an edge has seen; what all edges report at about one time is looked at once."""
        self._news |= self._book.report(incarnation, arms)
        if self._news and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GATHER_S, self._look_at_news)

    def on_shadow(self, incarnation: str, shadow: ShadowReport) -> None:
        """Take what a worker has compared; for people only."""
        self._shadows.take(incarnation, shadow)

    # what follows

    def round(self) -> None:
        """Look at every rollout that has not ended."""
        self._trail.round()
        for name, watched in self._watched.items():
            if watched.is_live:
                self._act(name)

    def _look_at_news(self) -> None:
        self._timer = None
        self._news &= self._watched.keys()
        for name in sorted(self._news):
            self._act(name)

    def _act(self, name: str) -> None:
        """See whether a rollout goes on, and have that written."""
        watched, now_s = self._watched[name], asyncio.get_running_loop().time()
        is_due = now_s >= self._again_s.get(name, float("-inf"))
        if not watched.is_live or name in self._writing or not is_due:
            return
        try:
            if self._timer is None and name in self._news:
                self._news.discard(name)
                self._compare(name, watched)
            move = policy.move(self._look(name))
        except Exception:
            _log.exception("bug")  # in one rollout, which must not end the rounds of all
            self._again_s[name] = now_s + AGAIN_S
            return
        if move is not None:
            work = self._carry_out(name, watched, move)
            self._writing[name] = asyncio.get_running_loop().create_task(work)

    def _look(self, name: str) -> Look:
        watched = self._watched[name]
        now_s = asyncio.get_running_loop().time()
        if watched.held_from_s is None and not self._is_lagging(watched.seq):
            watched.held_from_s = now_s
        warmth = self._warmth(name)
        return Look(
            now_s=now_s,
            spec=watched.spec,
            state=watched.state,
            verdict=watched.verdict,
            counts=watched.counts,
            warm=warmth.warm,
            wanted=warmth.wanted,
            failed=warmth.failed,
            failed_s=warmth.failed_s,
            held_s=0.0 if watched.held_from_s is None else now_s - watched.held_from_s,
            weights=watched.weights,
            cold=warmth.waits_for,
        )

    def _compare(self, name: str, watched: _Watched) -> None:
        """Let the guards see what was counted."""
        rollout, counts = watched.rollout, self._book.counts(name)
        if counts == watched.counts:
            return
        if watched.guards is None:
            watched.counts = counts  # of the baseline, before the first step
            return
        watched.mismatch_log_e = mismatch_log_e(self._book.assigned(name), watched.weights)
        watched.guards.look(
            asyncio.get_running_loop().time(),
            counts.get(rollout.baseline, ArmCounts()),
            counts.get(rollout.candidate, ArmCounts()),
            watched.mismatch_log_e,
        )
        watched.counts, watched.verdict = counts, watched.guards.verdict()

    async def _carry_out(self, name: str, watched: _Watched, move: Move) -> None:
        try:
            await asyncio.to_thread(self._write, name, watched, move)
        except StoreError as error:
            _log.warning("rollout_not_written", endpoint=name, error=str(error))
        except Exception:
            _log.exception("bug")  # which must not end the rounds
        else:
            await self._poll()
        finally:
            del self._writing[name]
        if not self._leads() or name not in self._watched:
            return
        if self._watched[name] is not watched:
            self._act(name)  # the next one may be due at once
        else:
            self._again_s[name] = asyncio.get_running_loop().time() + AGAIN_S

    def _write(self, name: str, watched: _Watched, move: Move) -> None:
        """Make a decision hold, unless something else holds already than what it is based on.

        Raises:
            StoreError: it is not known whether it holds.
        """
        seen = None if watched.document is None else watched.document.rollout
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        state = replace(move.state, at=at, epoch=self._epoch())

        def moved(stored: EndpointState | None) -> EndpointState:
            if (None if stored is None else stored.rollout) != seen or not self._leads():
                raise _Outrun
            return replace(
                stored or EndpointState(name, watched.spec.revision, {}),
                revision=watched.spec.revision,
                weights=dict(move.weights),
                step=state.step,
                verdict=state.state,
                reason=move.reason[: policy.REASON_CHARS_MAX],
                rollout=state,
            )

        try:
            endpoints.update_state(self._store, name, moved)
        except _Outrun:
            if not self._leads():
                return
            # Whoever wrote that may have died before anybody could notice; it was us, perhaps.
            endpoints.mark_state(self._store, name)
        else:
            # Whoever shows warnings only is to see how a rollout ended, and what a guard found.
            is_loud = state.harm or state.state in ("promoted", "rolled_back")
            (_log.warning if is_loud else _log.info)(
                "rollout_moved",
                endpoint=name,
                rollout=state.id,
                state=state.state,
                step=state.step,
                segment=state.segment,
                reason=move.reason,
                evidence=evidence_line(state),
            )

    # questions

    def began(self) -> dict[str, int]:
        """Return the endpoints with a rollout, and the revision of the spec it began with."""
        return {
            name: watched.spec.revision if watched.state is None else watched.state.revision
            for name, watched in self._watched.items()
        }

    def view(
        self, name: str, figures: Callable[[EndpointSpec], Mapping[str, ArmFigures]]
    ) -> dict[str, Any] | None:
        """Return what `rollout status` shows; None: the endpoint has no rollout.

        Args:
            name: the endpoint.
            figures: from its spec to what is known of its arms from elsewhere.
        """
        watched = self._watched.get(name)
        if watched is None:
            return None
        given = figures(watched.spec)
        found = {
            arm: replace(given.get(arm, ArmFigures()), shown=self._book.shown(name, arm))
            for arm in watched.weights
        }
        self._compare(name, watched)
        look, rollout = self._look(name), watched.rollout
        return report(
            look,
            is_held=watched.held_from_s is not None,
            mismatch_log_e=watched.mismatch_log_e,
            fires_at={} if watched.guards is None else watched.guards.fires_at(),
            figures=found,
            shadow=self._shadows.seen(name, rollout.id) if rollout.shadow is not None else None,
        )

    async def finish(self, s_max: float) -> None:
        """Wait until decisions that are being written are, and then their records."""
        if self._writing:
            await asyncio.wait(self._writing.values(), timeout=s_max)
        await self._trail.finish(s_max)

    def reset(self) -> None:
        """Forget everything: somebody else leads.  What is being written is not written then."""
        self._book.reset()
        self._shadows.reset()
        self._trail.reset()
        self._watched.clear()
        self._again_s.clear()
        self._news.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _guards(watched: _Watched, state: RolloutState) -> Guards:
    rollout = watched.rollout
    return Guards(
        rollout.guard,
        share=watched.weights[rollout.candidate] / 100.0 if watched.is_live else 0.0,
        past=state.segments,
        candidate=rollout.candidate,
        baseline=rollout.baseline,
        steps=len(rollout.steps),
        sticky=bool(watched.spec.assign.by),
        cached=watched.spec.cache is not None,
    )


def _watches(watched: _Watched) -> tuple[object, ...]:
    """Return what guards depend on, besides what was counted."""
    rollout, spec = watched.rollout, watched.spec
    steps, by = len(rollout.steps), bool(spec.assign.by)
    return (*watched.segment, watched.is_live, rollout.guard, steps, by)
