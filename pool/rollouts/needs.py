"""Which replicas rollouts keep warm, and how far a candidate is: before weights move, and after.

A candidate gets weight only where it is warm enough for that, and the baseline stays as it was
until nobody can want it back, so that a rollback finds it as warm as ever.  How many replicas the
demand asks for is decided in `scaling`; what is kept here is a lower bound for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from pool.placement import Demand, Ref, WorkerView, fits, owners
from registry_sync.documents import EndpointSpec, EndpointState
from registry_sync.rollout_terms import Rollout
from registry_sync.rollouts import effective_weights, is_live

# So many workers try to load a candidate before those that could not are asked again.
TRIES: Final = 3
# Whoever is given all calls at once keeps its replicas so long, until its own demand is known.
SETTLE_S: Final = 60.0
# Whoever is to get no more calls stays so long: edges may still send some by older weights.
LEAVE_S: Final = 1.0


class Warmth(msgspec.Struct, frozen=True):
    """How far the candidate of a rollout is, for its next step."""

    warm: int = 0  # replicas
    wanted: int = 1  # so many are enough
    failed: str = ""  # why it cannot be loaded anywhere; empty: it can, or workers still try
    failed_s: float = 0.0  # for how long that has been so
    waits_for: str = ""  # what is missing, for people; empty: nothing


@dataclass(slots=True)
class _Known:
    """What is remembered of one rollout."""

    rollout: tuple[str, Ref, Ref]  # see `_rollout_of`
    baseline: Ref
    candidate: Ref
    most: dict[Ref, int] = field(default_factory=dict)  # replicas that each had since it began
    is_live: bool = False
    weight: float = 0.0  # the candidate's
    full_since_s: float | None = None  # since when the candidate has all weight
    failures: dict[str, str] = field(default_factory=dict)  # worker → why it could not load
    failed_since_s: float | None = None  # since when no worker can
    warmth: Warmth = field(default_factory=Warmth)


class Needs:
    """All rollouts; `look` is called with times that never fall."""

    def __init__(self) -> None:
        # The whole mutable state: rollouts by endpoint; versions that have been given calls at
        # once, with replicas and until when they keep them; and what was made of that last.
        self._known: dict[str, _Known] = {}
        self._settling: dict[Ref, tuple[int, float]] = {}
        self._kept: dict[Ref, int] = {}
        self._beside: dict[Ref, Ref | None] = {}  # candidates, and where they are best loaded

    @property
    def kept(self) -> Mapping[Ref, int]:
        """The least replicas of the versions that a rollout is about."""
        return self._kept

    def warmth(self, endpoint: str) -> Warmth:
        """Return how far the candidate of an endpoint is, as of the last look."""
        known = self._known.get(endpoint)
        return Warmth() if known is None else known.warmth

    def demands(self, wanted: Mapping[Ref, Demand]) -> dict[Ref, Demand]:
        """Return `wanted` with what a candidate is to be loaded like."""
        found = dict(wanted)
        for ref, beside in self._beside.items():
            if ref in found:
                found[ref] = msgspec.structs.replace(found[ref], beside=beside, tries=TRIES)
        return found

    def look(
        self,
        specs: Mapping[str, EndpointSpec],
        states: Mapping[str, EndpointState],
        workers: Sequence[WorkerView],
        wanted: Mapping[Ref, Demand],
        now_s: float,
    ) -> None:
        """Take note of how things are.

        Args:
            specs: those with a rollout.
            states: of the endpoints, as far as there are any.
            workers: all of them.
            wanted: what was wanted last.
            now_s: monotonic.
        """
        self._kept, self._beside = {}, {}
        rollouts = {name: _rollout_of(spec) for name, spec in specs.items()}
        for name, known in list(self._known.items()):
            if rollouts.get(name) != known.rollout:
                del self._known[name]
                self._settle(known, known.most, now_s)
        whose = owners(wanted, workers) if specs else {}
        for name, (rollout_id, baseline, candidate) in rollouts.items():
            known = self._known.setdefault(
                name, _Known((rollout_id, baseline, candidate), baseline, candidate)
            )
            found = _Look(workers, wanted, whose, candidate)
            self._follow(known, specs[name], states.get(name), found, now_s)
        for ref, (replicas, until_s) in list(self._settling.items()):
            if now_s < until_s:
                self._keep(ref, replicas)
            else:
                del self._settling[ref]

    def _follow(
        self,
        known: _Known,
        spec: EndpointSpec,
        state: EndpointState | None,
        found: _Look,
        now_s: float,
    ) -> None:
        rollout = spec.rollout
        assert rollout is not None
        for ref in (known.baseline, known.candidate):
            known.most[ref] = max(known.most.get(ref, 0), found.warm(ref))
        before, weight = known.weight, effective_weights(spec, state)[rollout.candidate]
        known.weight = weight
        if weight < 100:
            known.full_since_s = None
        elif known.full_since_s is None:
            known.full_since_s = now_s
        if is_live(spec, state):
            known.is_live = True
            # What the candidate needs now is what the baseline needs for the same calls.
            known.most[known.baseline] = max(
                1, known.most[known.baseline], *(found.decided(ref) for ref in known.most)
            )
            _note_failures(known, found, now_s)
            share = next_weight(rollout, weight)
            known.warmth = _warmth(known, found, share, spec.scale.replicas_max, now_s)
            self._keep(known.baseline, known.most[known.baseline])
            self._keep(known.candidate, known.warmth.wanted)
            self._beside[known.candidate] = None if rollout.shadow is None else known.baseline
            return
        known.warmth = Warmth()
        if known.is_live or weight != before:
            known.is_live = False
            serves, other = (known.candidate, known.baseline)[:: 1 if weight else -1]
            self._settling[other] = (found.warm(other), now_s + LEAVE_S)
            self._settle(known, [serves], now_s)
        full_s = math.inf if known.full_since_s is None else now_s - known.full_since_s
        if full_s < rollout.steps[-1].hold_s:
            self._keep(known.baseline, known.most[known.baseline])

    def _settle(self, known: _Known, refs: Iterable[Ref], now_s: float) -> None:
        """Let versions keep for a while what they have: their calls come at once."""
        for ref in refs:
            self._settling[ref] = (known.most[ref], now_s + SETTLE_S)

    def _keep(self, ref: Ref, replicas: int) -> None:
        if replicas:
            self._kept[ref] = max(replicas, self._kept.get(ref, 0))


def _rollout_of(spec: EndpointSpec) -> tuple[str, Ref, Ref]:
    """Return a rollout's id, and the versions that it is about."""
    assert spec.rollout is not None
    refs = {variant.name: (variant.model, variant.version) for variant in spec.variants}
    return spec.rollout.id, refs[spec.rollout.baseline], refs[spec.rollout.candidate]


def next_weight(rollout: Rollout, weight: float) -> float:
    """Return the candidate's weight after its next step, in percent; at the last one, that.

    >>> [next_weight(Rollout(), weight) for weight in (0.0, 5.0, 50.0, 100.0)]
    [1.0, 25.0, 100.0, 100.0]
    >>> next_weight(Rollout(wish="promote"), 0.0)
    100.0
    """
    if rollout.wish == "promote":
        return 100.0
    above = (step.weight for step in rollout.steps if step.weight > weight)
    return float(next(above, 100.0))


class _Look(msgspec.Struct, frozen=True):
    """The workers, as a candidate sees them."""

    workers: Sequence[WorkerView]
    wanted: Mapping[Ref, Demand]
    whose: Mapping[str, str]  # by worker
    candidate: Ref

    def warm(self, ref: Ref) -> int:
        """How many replicas of a version are warm."""
        return sum(self._state(worker, ref) == "warm" for worker in self._live())

    def states(self) -> dict[str, str]:
        """The candidate's state by worker that has it, or tries to."""
        found = {worker.id: self._state(worker, self.candidate) for worker in self._live()}
        return {name: state for name, state in found.items() if state}

    def detail(self, worker: str) -> str:
        """Why the candidate failed there."""
        found = next(one for one in self.workers if one.id == worker)
        return found.engines[self.candidate].detail

    def decided(self, ref: Ref) -> int:
        """How many replicas of a version were wanted last."""
        return self.wanted[ref].replicas if ref in self.wanted else 0

    def takers(self) -> list[WorkerView]:
        """The workers that have the candidate, or could."""
        demand = self.wanted.get(self.candidate, Demand(1))
        shared = [worker for worker in self._live() if not self.whose.get(worker.id)]
        own = [worker for worker in self._live() if self.whose.get(worker.id) == demand.owner]
        if demand.owner:
            # It gets more of its own as it needs them; one is left to those that share.
            own = [*own, *shared[1:]] if own else shared
        return [
            worker
            for worker in own
            if self._state(worker, self.candidate) or fits(worker, demand.size_bytes)
        ]

    def _live(self) -> list[WorkerView]:
        return [worker for worker in self.workers if not worker.draining]

    @staticmethod
    def _state(worker: WorkerView, ref: Ref) -> str:
        engine = worker.engines.get(ref)
        return "" if engine is None else engine.state


def _note_failures(known: _Known, found: _Look, now_s: float) -> None:
    """Remember who could not load the candidate; trying again is no news, until it is warm."""
    states = found.states()
    if "warm" in states.values():
        known.failures.clear()
        known.failed_since_s = None
        return
    there = {worker.id for worker in found.takers()}
    known.failures = {name: why for name, why in known.failures.items() if name in there}
    for name, state in states.items():
        if state == "failed":
            known.failures[name] = found.detail(name)
    trying = [n for n, state in states.items() if state == "loading" and n not in known.failures]
    is_tried = len(known.failures) >= TRIES or there <= known.failures.keys()
    if not known.failures or trying or not is_tried:
        known.failed_since_s = None
    elif known.failed_since_s is None:
        known.failed_since_s = now_s


def _warmth(known: _Known, found: _Look, weight: float, most: int, now_s: float) -> Warmth:
    """Return how far the candidate is for `weight`, as it is kept for the baseline's replicas."""
    baseline = min(known.most[known.baseline], most)
    takers = found.takers()
    wanted = max(1, min(math.ceil(baseline * weight / 100 - 1e-9), most, len(takers)))
    warm = found.warm(found.candidate)
    why = next(iter(known.failures.values()), "")
    waits_for = ""
    if warm < wanted:
        model, version = found.candidate
        waits_for = f"{warm} of {wanted} replicas of {model} version {version} are warm"
        if why:
            waits_for += f"; a worker could not load it: {why}"
        elif not takers:
            waits_for += "; no worker has room for it"
    if known.failed_since_s is None:
        return Warmth(warm, wanted, waits_for=waits_for)
    return Warmth(warm, wanted, why, now_s - known.failed_since_s, waits_for)
