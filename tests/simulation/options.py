"""What one seed stands for: a fleet, what is asked of it, and what goes wrong when."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal

from tests.simulation.engine import Costs

LENGTH_S: Final = (5.0, 8.0)  # of what goes wrong
LONG_S: Final = 30.0  # so that a leader's lease can run out meanwhile
LONG_SHARE: Final = 0.1
CALM_SHARE: Final = 0.1  # of the seeds: nothing goes wrong
OUTER_SHARE: Final = 0.25  # only what the way of a call does not need
POISON_SHARE: Final = 0.15
ROLLOUT_SHARE: Final = 0.2
OVERLOAD_SHARE: Final = 0.15
LEFT_SHARE: Final = 0.1
TOLD_SHARE: Final = 0.4
HELPED_SHARE: Final = 0.25
DEDICATED_SHARE: Final = 0.25
CALLS_PER_S: Final = (4.0, 14.0)
FAULTS_PER_S: Final = 0.5

# What no call of a loaded model may notice, and what some may.
OUTER: Final = (
    "kill_controller",
    "stop_controller",
    "cut_controller",
    "registry_gone",
    "registry_gone_for_one",
    "registry_slow",
    "kill_sync",
    "clock_steps",
    "clock_of_one",
)
INNER: Final = (
    "kill_worker",
    "stop_worker",
    "end_worker",
    "kill_edge",
    "stop_edge",
    "cut_worker",
    "cut_from_one",
    "reset_worker",
    "slow_network",
    "change_scale",
)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong."""

    at_s: float  # after the fleet is up
    kind: str
    for_s: float
    which: int  # of those whom it can befall


@dataclass(frozen=True)
class Model:
    """A model, its endpoint, and how it is called."""

    name: str
    costs: Costs
    rows_max: int  # of one run
    replicas_min: int
    replicas_max: int
    idle_s: float | Literal["auto"]
    cached: bool  # its inputs come again, and answers are kept
    hedged: bool  # slow calls go to a second replica as well
    timeout_s: float  # of its calls
    left_share: float  # of its calls, whose callers do not wait for the end
    calls_per_s: float


@dataclass(frozen=True)
class Options:
    """Everything that a seed decides before it begins; printed when it fails."""

    seed: int
    length_s: float
    controllers: int
    edges: int
    nodes: tuple[int, ...]  # workers on each
    supervised: bool  # workers are started as needed, or not at all
    queue_bytes_max: int  # of a worker
    delay_s: tuple[float, float]  # of what is on its way
    pieces_share: float  # of what is written arrives in two pieces
    answer_s: tuple[float, float]  # of the registry
    models: tuple[Model, ...]
    tenants: tuple[float, ...]  # the share of each
    rollout: str  # of the first model: empty, good or bad
    rollout_at_s: float
    poison_at_s: tuple[float, ...]  # calls that kill whoever runs them
    faults: tuple[Fault, ...]
    is_told: bool  # a queue tells controllers of what changes in the registry
    helpers: int  # fallback workers, on a node of their own, for every model
    has_dedicated: bool  # the last model has workers of its own

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of the workers, fallback ones last."""
        counts = enumerate(self.nodes)
        found = [f"n{node}-{at}" for node, count in counts for at in range(count)]
        return (*found, *self.helper_names)

    @property
    def helper_names(self) -> tuple[str, ...]:
        """The names of the fallback workers."""
        return tuple(f"{HELPING}-{at}" for at in range(self.helpers))

    @property
    def syncs(self) -> tuple[str, ...]:
        """The names of the nodes' sync processes."""
        nodes = [f"n{at}" for at in range(len(self.nodes))]
        return tuple(f"{node}.sync" for node in (*nodes, *[HELPING] * bool(self.helpers)))

    @property
    def is_gentle(self) -> bool:
        """Whether a loaded model's calls must all be answered."""
        kinds = {fault.kind for fault in self.faults}
        is_light = all(model.calls_per_s <= CALLS_PER_S[1] for model in self.models)
        is_light &= self.queue_bytes_max > SMALL_BYTES
        return kinds <= set(OUTER) and not self.poison_at_s and is_light

    def __str__(self) -> str:
        lines = []
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, tuple) and value and isinstance(value[0], Fault | Model):
                lines += [f"  {one.name}:", *(f"    {part}" for part in value)]
            else:
                lines.append(f"  {one.name}: {value}")
        return "\n".join(lines)


SMALL_BYTES: Final = 160
HELPING: Final = "f"  # the node of the fallback workers
SECOND_ADDS: Final = 100  # what the candidate of a rollout adds besides
SECOND_FAILS_EACH: Final = 4  # of one that is bad
POISON_EACH: Final = 1_000_003  # the value of a poisonous call is a multiple of this
FAILS_EACH: Final = 7


def drawn(seed: int) -> Options:
    """Draw a seed's options."""
    dice = random.Random(f"options of {seed}")
    is_long = dice.random() < LONG_SHARE
    length_s = LONG_S if is_long else dice.uniform(*LENGTH_S)
    nature = _nature(dice)
    is_crowded = nature == "any" and dice.random() < OVERLOAD_SHARE
    has_poison = nature == "any" and dice.random() < POISON_SHARE
    rollout = dice.choice(("good", "good", "bad")) if dice.random() < ROLLOUT_SHARE else ""
    nodes = dice.choice(((1,), (2,), (2,), (3,), (1, 1), (2, 1)))
    return Options(
        seed=seed,
        length_s=length_s,
        controllers=2 if is_long else dice.choice((1, 1, 2)),
        edges=dice.choice((1, 1, 2, 2, 3)),
        nodes=nodes,
        supervised=dice.random() < 0.3,
        queue_bytes_max=SMALL_BYTES if is_crowded and dice.random() < 0.5 else 1 << 20,
        delay_s=dice.choice(((0.00005, 0.0005), (0.0001, 0.005), (0.00005, 0.0005))),
        pieces_share=dice.choice((0.0, 0.2, 0.6)),
        answer_s=dice.choice(((0.005, 0.02), (0.01, 0.05), (0.05, 0.3))),
        models=_models(dice, sum(nodes), is_long=is_long, is_crowded=is_crowded, rollout=rollout),
        tenants=dice.choice(((1.0,), (1.0, 1.0), (1.0, 2.0, 0.5))),
        rollout=rollout,
        rollout_at_s=dice.uniform(0.0, 2.0),
        poison_at_s=_times(dice, dice.randint(1, 2), length_s) if has_poison else (),
        faults=_faults(dice, length_s, nature),
        is_told=dice.random() < TOLD_SHARE,
        helpers=dice.choice((1, 1, 2)) if dice.random() < HELPED_SHARE else 0,
        has_dedicated=dice.random() < DEDICATED_SHARE,
    )


def _nature(dice: random.Random) -> str:
    chance = dice.random()
    if chance < CALM_SHARE:
        return "calm"
    return "outer" if chance < CALM_SHARE + OUTER_SHARE else "any"


def _models(
    dice: random.Random, workers: int, *, is_long: bool, is_crowded: bool, rollout: str
) -> tuple[Model, ...]:
    found = []
    for at in range(dice.choice((1, 2, 2))):
        is_first = at == 0
        is_lazy = not is_first and dice.random() < 0.5
        run_s = dice.choice((0.004, 0.01, 0.03))
        rows_max = dice.choice((1, 4, 8))
        rate = dice.uniform(*CALLS_PER_S) / (2.0 if is_long else 1.0)
        if is_crowded and is_first:
            run_s, rows_max, rate = 0.06, dice.choice((1, 2)), 1.6 / 0.06
        if is_lazy:
            rate = dice.uniform(0.3, 1.0)
        replicas = dice.randint(1, min(2, workers))
        found.append(
            Model(
                name="mnop"[at],
                costs=Costs(
                    load_s=dice.choice((0.1, 0.3, 0.8)),
                    run_s=run_s,
                    row_s=dice.choice((0.0, 0.001)),
                    adds=1 + 10 * at,
                    fails_each=0 if is_first and rollout else dice.choice((0, 0, FAILS_EACH)),
                    kills_each=POISON_EACH,
                ),
                rows_max=rows_max,
                replicas_min=0 if is_lazy else replicas,
                replicas_max=max(replicas, min(2, workers)),
                idle_s=dice.choice((0.5, 2.0)) if is_lazy else "auto",
                cached=not is_first and not is_lazy and dice.random() < 0.5,
                hedged=replicas > 1 and dice.random() < 0.5,
                timeout_s=dice.choice((0.5, 2.0)) if not is_lazy else 8.0,
                calls_per_s=rate,
                left_share=0.0 if is_first and rollout else dice.choice((0.0, LEFT_SHARE)),
            )
        )
    return tuple(found)


def _times(dice: random.Random, count: int, length_s: float) -> tuple[float, ...]:
    return tuple(sorted(dice.uniform(0.0, length_s) for _ in range(count)))


def _faults(dice: random.Random, length_s: float, nature: str) -> tuple[Fault, ...]:
    if nature == "calm":
        return ()
    kinds: Sequence[str] = OUTER if nature == "outer" else (*OUTER, *INNER, *INNER)
    count = max(1, round(dice.uniform(0.5, 1.5) * FAULTS_PER_S * min(length_s, 15.0)))
    faults = []
    for at_s in _times(dice, count, length_s):
        kind = dice.choice(kinds)
        for_s = dice.uniform(*_LASTS_S.get(kind, (0.1, 3.0)))
        if length_s == LONG_S and kind in _LEADS:
            for_s = dice.uniform(5.0, LONG_S)
        faults.append(Fault(at_s, kind, for_s, dice.randrange(6)))
    return tuple(faults)


_LEADS: Final = frozenset(("stop_controller", "registry_gone_for_one", "cut_controller"))
_LASTS_S: Final[Mapping[str, tuple[float, float]]] = {
    "stop_edge": (0.05, 0.6),
    "stop_worker": (0.05, 5.0),
    "kill_controller": (0.0, 3.0),
    "cut_worker": (0.1, 2.0),
}
