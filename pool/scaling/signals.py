"""What the scaling policies go by, and what they say."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the endpoints allow of one version, all of them together."""

    replicas_min: int = 0
    replicas_max: int = 4
    idle_s: float | None = None  # None: learned
    cold_start_cost_s: float = 3600.0
    replica_hours_per_day_max: float | None = None
    forecast: str = "act"  # act | observe | off
    is_due: bool = False  # a schedule, or somebody by request, wants it warm now
    is_awaited: bool = (
        False  # calls came while no machine was up, and it is for them that one starts
    )
    replicas_kept: int = 0  # that a rollout wants warm now, before or after it moves calls

    @property
    def replicas_least(self) -> int:
        """Wanted whatever the demand."""
        return max(self.replicas_min, int(self.is_due), self.replicas_kept)


class Signals(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of one version at a moment, over all its replicas."""

    now_s: float  # monotonic
    unix_s: float  # wall clock; only what repeats by the day goes by it
    arrived: int  # calls ever; only its growth counts
    waiting: int = 0  # of the calls inside, those that do not run
    running: int = 0
    warm: int = 0  # replicas
    loading: int = 0
    calls_per_s: float = 0.0  # that one warm replica can do; 0: not measured yet
    wake_s: float = 1.0  # from a call for what sleeps to its run, as learned
    # Since the last call came, as the replicas say; less than since it was seen.  0: not known.
    idle_s: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas are wanted, and why.

    It holds until something arrives or ends, or until `until_s` if nothing does.
    """

    replicas: int
    reason: str  # the term that won: "minimum", "schedule", "demand", "panic", "forecast", …
    until_s: float  # monotonic; infinite: for good
    terms: Mapping[str, float] = {}  # for people: what each term said
