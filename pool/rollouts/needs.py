"""Which replicas rollouts keep warm, and how far a candidate is: before weights move, and after.

A candidate gets weight only where it is warm enough for that, and the baseline stays as it was
until nobody can want it back, so that a rollback finds it as warm as ever.  How many replicas the
demand asks for is decided in `scaling`; what is kept here is a lower bound for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

import msgspec

from pool.placement import Demand, Ref, WorkerView, fits, owners
from pool.wire.control import EngineState
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

    spec: EndpointSpec
    state: EndpointState | None
    baseline: Ref
    candidate: Ref
    most: dict[Ref, int] = field(default_factory=dict)  # replicas that each had since it began
    is_live: bool = False
    is_over: bool = False  # nothing is kept any more, until a document changes
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
        for name in self._known.keys() - specs.keys():
            self._leave(name, now_s)
        pool: _Pool | None = None
        for name, spec in specs.items():
            known, state = self._known.get(name), states.get(name)
            is_same = known is not None and known.spec is spec and known.state is state
            if known is not None and known.is_over and is_same:
                continue  # as most are that ever were, and this is done very often
            if known is not None and not is_same and _rollout_of(known.spec) != _rollout_of(spec):
                self._leave(name, now_s)
                known = None
            if known is None:
                _, baseline, candidate = _rollout_of(spec)
                known = self._known[name] = _Known(spec, state, baseline, candidate)
            known.spec, known.state = spec, state
            pool = pool or _Pool(workers, wanted)
            self._follow(known, pool, now_s)
        for ref, (replicas, until_s) in list(self._settling.items()):
            if now_s < until_s:
                self._keep(ref, replicas)
            else:
                del self._settling[ref]

    def _follow(self, known: _Known, pool: _Pool, now_s: float) -> None:
        spec, rollout = known.spec, known.spec.rollout
        assert rollout is not None
        for ref in (known.baseline, known.candidate):
            known.most[ref] = max(known.most.get(ref, 0), pool.warm[ref])
        before = known.weight
        known.weight = weight = effective_weights(spec, known.state)[rollout.candidate]
        if weight < 100:
            known.full_since_s = None
        elif known.full_since_s is None:
            known.full_since_s = now_s
        if is_live(spec, known.state):
            known.is_live, known.is_over = True, False
            # What the candidate needs now is what the baseline needs for the same calls.
            known.most[known.baseline] = max(
                1, known.most[known.baseline], *(pool.decided(ref) for ref in known.most)
            )
            takers = pool.takers(known.candidate)
            _note_failures(known, pool, takers, now_s)
            most = min(spec.scale.replicas_max, len(takers))
            known.warmth = _warmth(known, pool, next_weight(rollout, weight), most, now_s)
            self._keep(known.baseline, known.most[known.baseline])
            self._keep(known.candidate, known.warmth.wanted)
            self._beside[known.candidate] = None if rollout.shadow is None else known.baseline
            return
        known.warmth = Warmth()
        if known.is_live or weight != before:
            known.is_live = False
            serves, other = (known.candidate, known.baseline)[:: 1 if weight else -1]
            self._settling[other] = (pool.warm[other], now_s + LEAVE_S)
            self._settling[serves] = (known.most[serves], now_s + SETTLE_S)
        full_s = math.inf if known.full_since_s is None else now_s - known.full_since_s
        known.is_over = full_s >= rollout.steps[-1].hold_s
        if not known.is_over:
            self._keep(known.baseline, known.most[known.baseline])

    def _leave(self, endpoint: str, now_s: float) -> None:
        """Forget a rollout that a spec has not any more; its calls may come to either arm."""
        for ref, replicas in self._known.pop(endpoint).most.items():
            self._settling[ref] = (replicas, now_s + SETTLE_S)

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


class _Pool:
    """The workers, as a rollout sees them; they do not change meanwhile."""

    def __init__(self, workers: Sequence[WorkerView], wanted: Mapping[Ref, Demand]) -> None:
        # What fallback workers have does not count: they have it only while others do not.
        self._live = [w for w in workers if not w.draining and not w.is_fallback]
        self._wanted = wanted
        self._whose = owners(wanted, workers)
        self._may: dict[str, list[WorkerView]] = {}
        self.warm = Counter(  # replicas
            ref
            for worker in self._live
            for ref, engine in worker.engines.items()
            if engine.state == "warm"
        )

    def engines(self, ref: Ref) -> dict[str, EngineState]:
        """Return a version's engines by worker, whatever their state."""
        return {w.id: w.engines[ref] for w in self._live if ref in w.engines}

    def decided(self, ref: Ref) -> int:
        """Return how many replicas of a version were wanted last."""
        return self._wanted[ref].replicas if ref in self._wanted else 0

    def takers(self, ref: Ref) -> set[str]:
        """Return the workers that have a version, or could."""
        demand = self._wanted.get(ref, Demand(1))
        may = self._may.get(demand.owner)
        if may is None:
            may = self._may[demand.owner] = self._of(demand.owner)
        return {w.id for w in may if ref in w.engines or fits(w, demand.size_bytes)}

    def _of(self, owner: str) -> list[WorkerView]:
        """Return the workers on which versions of an owner may be loaded, now or in a moment."""
        shared = [worker for worker in self._live if not self._whose.get(worker.id)]
        own = [worker for worker in self._live if self._whose.get(worker.id) == owner]
        if not owner:
            return shared
        # It gets more of its own as it needs them; one is left to those that share.
        return [*own, *shared[1:]] if own else shared


def _note_failures(known: _Known, pool: _Pool, takers: Set[str], now_s: float) -> None:
    """Remember who could not load the candidate; trying again is no news, until it is warm.

    What is not the version's fault, such as a registry that is away, is a try that goes on.
    """
    if pool.warm[known.candidate]:
        known.failures.clear()
        known.failed_since_s = None
        return
    known.failures = {name: why for name, why in known.failures.items() if name in takers}
    is_tried_anew = False
    for name, engine in pool.engines(known.candidate).items():
        if engine.state == "failed" and not engine.passes:
            known.failures[name] = engine.detail
        elif engine.state == "failed" or engine.state == "loading":
            is_tried_anew |= name not in known.failures
    is_tried = len(known.failures) >= TRIES or takers <= known.failures.keys()
    if not known.failures or is_tried_anew or not is_tried:
        known.failed_since_s = None
    elif known.failed_since_s is None:
        known.failed_since_s = now_s


def _warmth(known: _Known, pool: _Pool, weight: float, most: int, now_s: float) -> Warmth:
    """Return how far the candidate is for `weight`: its share of the baseline's replicas.

    Args:
        most: so many it can have; 0: no worker has room.
    """
    wanted = max(1, min(math.ceil(known.most[known.baseline] * weight / 100 - 1e-9), most))
    warm = pool.warm[known.candidate]
    engines = pool.engines(known.candidate).values()
    passing = (engine.detail for engine in engines if engine.state == "failed")
    why = next(iter(known.failures.values()), "")
    waits_for = ""
    if warm < wanted:
        model, version = known.candidate
        waits_for = f"{warm} of {wanted} replicas of {model} version {version} are warm"
        hindered = why or next(passing, "")
        if hindered:
            waits_for += f"; a worker could not load it: {hindered}"
        elif not most:
            waits_for += "; no worker has room for it"
    if known.failed_since_s is None:
        return Warmth(warm, wanted, waits_for=waits_for)
    return Warmth(warm, wanted, why, now_s - known.failed_since_s, waits_for)
