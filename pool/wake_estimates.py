"""How long a call waits for an engine that sleeps: learned from every wake, by version and engine.

The artifact's way to the node is no part of it: that happens once.  What has never been woken has
no estimate, and nobody is refused on a guess.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

Ref: TypeAlias = tuple[str, str]  # model, version

# Half of the way down and a quarter up: an estimate that is too long refuses who could be answered,
# one that is too short lets somebody wait until the deadline, which costs less.
GAIN_DOWN: Final = 1 / 2
GAIN_UP: Final = 1 / 4
VERSIONS_MAX: Final = 4096


class Wake(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one version's wakes with one engine."""

    model: str
    version: str
    engine: str
    wake_s: float


class WakeEstimates:
    """The estimates of one node.

    >>> known = WakeEstimates()
    >>> known.learn(("m", "1"), "onnxruntime", 0.2)
    >>> known.learn(("m", "1"), "onnxruntime", 0.1)
    >>> round(known.wake_s(("m", "1")), 6)
    0.15
    """

    def __init__(self) -> None:
        # The whole mutable state: seconds by version and engine, what was learned last at the end.
        self._known: dict[Ref, dict[str, float]] = {}

    def learn(self, ref: Ref, engine: str, wake_s: float) -> None:
        """Learn from one wake, which took `wake_s` without the artifact's way to the node."""
        engines = self._known.pop(ref, {})
        before_s = engines.pop(engine, wake_s)
        gain = GAIN_DOWN if wake_s < before_s else GAIN_UP
        engines[engine] = before_s + gain * (wake_s - before_s)
        self._known[ref] = engines
        if len(self._known) > VERSIONS_MAX:
            del self._known[next(iter(self._known))]

    def wake_s(self, ref: Ref) -> float:
        """Return how long a wake takes, with the engine that was woken last; 0: not known."""
        engines = self._known.get(ref)
        return next(reversed(engines.values())) if engines else 0.0

    def rows(self) -> list[Wake]:
        """Return all that is known, to be kept; in the order in which it was learned."""
        return [
            Wake(*ref, engine, wake_s)
            for ref, engines in self._known.items()
            for engine, wake_s in engines.items()
        ]

    def take(self, rows: list[Wake]) -> None:
        """Take over what was kept, unless more is known already."""
        for row in rows:
            if row.wake_s >= 0:
                self._known.setdefault((row.model, row.version), {}).setdefault(
                    row.engine, row.wake_s
                )
