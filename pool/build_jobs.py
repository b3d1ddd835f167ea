"""What the desk for builds keeps and says: values only, `build_desk` decides.

Times are the caller's monotonic seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple, TypeAlias

BACKOFF_S: Final = 10.0  # after the first failure, doubled by each further one
BACKOFF_S_MAX: Final = 3600.0

Ref: TypeAlias = tuple[str, str]  # model, version


class Target(NamedTuple):
    """What a plan is for."""

    model: str
    version: str
    engine: str  # empty: any that can
    device_class: str

    @property
    def ref(self) -> Ref:
        return (self.model, self.version)

    def may_be(self, other: Target) -> bool:
        """Tell whether both may mean the same engine on the same kind of device."""
        return self.device_class == other.device_class and (
            self.engine == other.engine or not self.engine or not other.engine
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of one plan; see `pool.wire.control.BuildReport`."""

    target: Target
    state: str  # wanted | building | built | failed | refused | other | dropped | unwanted
    key: str = ""  # empty: not known yet
    reason: str = ""
    retry_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Let `worker` build, or say how its build goes."""

    worker: str
    target: Target
    key: str  # empty: not known yet


@dataclass(frozen=True, slots=True)
class Drop:
    """Let `worker` give its build up: nobody wants it any more."""

    worker: str
    target: Target
    key: str  # empty: not known yet


@dataclass(frozen=True, slots=True)
class Tell:
    """Let `worker` know that the plan is in the registry."""

    worker: str
    target: Target
    key: str


@dataclass(slots=True)
class Seat:
    """A registered worker."""

    incarnation: str
    device_class: str
    builds: frozenset[str]  # "engine/device class"
    refs: frozenset[Ref] = frozenset()  # that it runs or loads
    is_draining: bool = False
    gone_s: float | None = None  # since when its connection is lost
    asked_s: float = -inf  # when it was last given something to build

    def can_build(self, target: Target) -> bool:
        if target.engine:
            return f"{target.engine}/{target.device_class}" in self.builds
        return any(one.partition("/")[2] == target.device_class for one in self.builds)

    def runs(self, target: Target) -> bool:
        """Tell whether the plan is of use here."""
        return target.device_class == self.device_class and target.ref in self.refs


@dataclass(slots=True)
class Attempt:
    """One worker's work on one job."""

    target: Target  # as it was asked
    since_s: float  # when it was first asked, or has dialled again
    asked_s: float
    said_s: float | None = None  # when it last said that it builds; None: not yet
    dropped_s: float = -inf  # when it was last told to give up


@dataclass(slots=True)
class Job:
    """One plan: of one key, or of a wish whose key nobody has said yet."""

    key: str
    targets: dict[Target, None]  # several versions may have one artifact
    used_s: float  # when anybody last spoke of it or needed it
    wishes: set[Target] = field(default_factory=set)
    wanters: set[tuple[str, Ref]] = field(default_factory=set)  # worker, version
    attempts: dict[str, Attempt] = field(default_factory=dict)
    is_built: bool = False
    built_s: float = -inf  # when it was last said to be, or looked for again
    failures: int = 0  # in a row
    losses: int = 0  # builders that died or went silent, in a row
    rebuilds: int = 0  # of a plan that was there, in a row
    not_before_s: float = -inf
    held_s: dict[str, float] = field(default_factory=dict)  # worker → not before
    failed_at: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)  # worker → why
    told: set[tuple[str, Ref]] = field(default_factory=set)
    unsure_s: float = -inf  # until then, who wants it may not have said so yet
    error: str = ""  # what went wrong last

    @property
    def target(self) -> Target:
        return next(iter(self.targets))

    @property
    def is_needed(self) -> bool:
        return bool(self.wishes or self.wanters)

    def is_due(self, now_s: float) -> bool:
        """Tell whether somebody should be asked to build it."""
        is_open = self.is_needed and not self.is_built and not self.attempts
        return is_open and now_s >= self.not_before_s

    def target_for(self, worker: str) -> Target:
        """Return the target under which a worker knows this key, if it has said so."""
        own = (one for one in self.targets if (worker, one.ref) in self.wanters)
        return next(own, self.target)

    def turn(self, target: Target) -> None:
        """Let another version with this key be asked for next."""
        if target in self.targets:
            del self.targets[target]
            self.targets[target] = None

    def builders(self) -> Iterator[str]:
        """Yield who has said that it builds."""
        return (worker for worker, one in self.attempts.items() if one.said_s is not None)


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row.

    >>> [backoff_s(n) for n in (0, 1, 2, 3, 30, 3000)]
    [0.0, 10.0, 20.0, 40.0, 3600.0, 3600.0]
    """
    return min(BACKOFF_S * 2 ** min(failures - 1, 20), BACKOFF_S_MAX) if failures > 0 else 0.0
