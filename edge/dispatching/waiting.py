"""The calls that wait because no worker can be reached for them, and when no more should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from edge.dispatching.calls import Call, Ref
from edge.errors import RETRY_AFTER_S_MAX

# As long as most calls may take.  Then one at a time waits, so that there is somebody for whom
# workers are dialled and started, and the others are refused.
IN_VAIN_S_MAX: Final = 10.0


class Waiting:
    """Calls in the order in which they came."""

    def __init__(self) -> None:
        # The whole mutable state: who waits, since when nobody could be reached for an engine, and
        # how many have gone without having been sent, and when the last did, by "model/version".
        self._calls: dict[Call, None] = {}
        self._since_s: dict[Ref, float] = {}
        self.unserved: Counter[str] = Counter()
        self._unserved_s: dict[str, float] = {}

    def __iter__(self) -> Iterator[Call]:
        return iter(list(self._calls))

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: Call) -> bool:
        return call in self._calls

    def add(self, call: Call, now_s: float) -> None:
        """Let a call wait."""
        self._calls[call] = None
        self._since_s.setdefault(call.ref, now_s)

    def remove(self, call: Call) -> None:
        """Let a call wait no longer, if it does."""
        self._calls.pop(call, None)

    def give_up(self, call: Call, now_s: float) -> None:
        """Let a call wait no longer that nobody gets; if somebody had it, it does not count."""
        if call in self._calls:
            del self._calls[call]
            if not call.sent:
                self.unserved["/".join(call.ref)] += 1
                self._unserved_s["/".join(call.ref)] = now_s

    def unserved_age_s(self, now_s: float) -> dict[str, int]:
        """Return by "model/version" how long ago the last went unsent, where it may come back."""
        ages_s = {name: now_s - at_s for name, at_s in self._unserved_s.items()}
        return {name: int(age_s) for name, age_s in ages_s.items() if age_s < RETRY_AFTER_S_MAX}

    def reached(self, ref: Ref) -> None:
        """Take note that somebody can be reached for an engine."""
        if self._since_s:
            self._since_s.pop(ref, None)

    def is_in_vain(self, call: Call, now_s: float) -> bool:
        """Tell whether a call need not wait: for long nobody came, and another one waits."""
        if now_s - self._since_s.get(call.ref, now_s) < IN_VAIN_S_MAX:
            return False
        return any(one.ref == call.ref for one in self._calls if one is not call)

    def counts(self) -> dict[str, int]:
        """Return by "model/version" how many wait."""
        return dict(Counter("/".join(call.ref) for call in self._calls))

    def first_s(self) -> dict[Ref, float]:
        """Return for each engine the first deadline of those that wait."""
        found: dict[Ref, float] = {}
        for call in self._calls:
            found[call.ref] = min(call.deadline_s, found.get(call.ref, call.deadline_s))
        return found
