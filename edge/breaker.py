"""When to leave a part that fails alone, and when to try it again; a policy.

Every failure adds to a score and every success takes a little away, so that both a part that is
gone and one that fails every third time are left alone, and one failure in a hundred changes
nothing.  After a pause one attempt is let through; its end decides.

Source: the circuit breaker of Nygard, "Release It!" (2007), with a leaking count instead of a
count of failures in a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SCORE_MAX = 5.0
SCORE_OF_SUCCESS = 0.25  # more than one failure in five opens it sooner or later
PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is remembered; closed at first."""

    score: float = 0.0
    open_until_s: float | None = None  # None: closed

    @property
    def is_open(self) -> bool:
        """Whether the part is left alone, but for single attempts."""
        return self.open_until_s is not None


def ask(breaker: Breaker, now_s: float) -> tuple[bool, Breaker]:
    """Return whether an attempt may be made now, and what to remember.

    >>> ask(Breaker(), 7.0)[0]
    True
    >>> tried, later = ask(Breaker(0.0, open_until_s=30.0), 30.0)
    >>> tried, ask(later, 59.0)[0], ask(later, 60.0)[0]
    (True, False, True)
    """
    if breaker.open_until_s is None:
        return True, breaker
    if now_s < breaker.open_until_s:
        return False, breaker
    # An attempt whose end is never told must not keep it open for ever, hence the next pause.
    return True, replace(breaker, open_until_s=now_s + PAUSE_S)


def tell(breaker: Breaker, is_success: bool, now_s: float) -> Breaker:
    """Return what to remember after an attempt has ended.

    >>> breaker = Breaker()
    >>> for _ in range(5):
    ...     breaker = tell(breaker, False, 1.0)
    >>> breaker
    Breaker(score=0.0, open_until_s=31.0)
    >>> tell(breaker, True, 31.0)
    Breaker(score=0.0, open_until_s=None)
    """
    if is_success:
        if breaker.is_open:
            return Breaker()
        return breaker if not breaker.score else Breaker(max(0.0, breaker.score - SCORE_OF_SUCCESS))
    score = breaker.score + 1.0
    if breaker.is_open or score >= SCORE_MAX:
        return Breaker(0.0, now_s + PAUSE_S)
    return Breaker(score)
