"""Which part of each key's limits every edge process may use: pure, by the caller's clock.

Rules:

- All parts of a limit add up to 1 at most, counting for each process the most that it may be
  using: what it was sent before counts until it has confirmed the next.  So a part that grows
  waits for those that shrink.
- The parts follow recent demand, max-min fair: who wants little gets it, the others share alike.
  What nobody wants is spread evenly, and everybody has a little at any time.
- Of a key that nobody asks for, each process has an equal part, under the name ``""``.
- A process that is gone keeps its parts for `HOLD_S`: it may only have lost its connection, and
  goes on with them.  Its successor, which has its id, takes its place at once.
- A new leader knows nothing: it leaves the parts that are in use with those who dial it, and moves
  none for `SETTLE_S`, so that whoever has not dialled yet is not forgotten.

Knows no rate and no quota: parts are of whatever limit the documents say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ANY = ""  # the key whose parts hold for each that is not named
HOLD_S = 5.0
SETTLE_S = 5.0  # a process notices within 4 s that its leader is gone, and dials every 2 s
HEADROOM = 1.05  # over recent demand, which is not the same every second
FLOOR = 0.01  # of a limit, for a process that nobody has asked yet …
FLOORS = 0.04  # … but of all processes together
IDLE_S = 30.0  # a key that nobody asked for so long is no longer named
STEP = 0.002  # a smaller change is not worth a message …
STEP_RATIO = 0.05  # … nor is one by less than this

Parts = tuple[float, float, float]  # of requests, of rows, of calls under way
NOTHING: Parts = (0.0, 0.0, 0.0)


def split(demands: Sequence[float]) -> list[float]:
    """Share out one limit, max-min fair.

    Args:
        demands: of each process, as parts of the limit; they may add up to more than 1.

    Returns:
        Parts in the same order, which add up to 1.

    >>> [round(part, 3) for part in split([1.0, 1.0, 0.0, 0.0])]
    [0.49, 0.49, 0.01, 0.01]
    >>> split([0.0, 0.0])
    [0.5, 0.5]
    """
    count = len(demands)
    floor = min(FLOOR, FLOORS / count)
    wanted = [max(demand * HEADROOM, floor) for demand in demands]
    spare = (1 - sum(wanted)) / count
    if spare >= 0:
        return [want + spare for want in wanted]
    parts = [0.0] * count
    left = 1.0
    # Who wants least is served first, so that what it leaves is there for the others.
    for position, index in enumerate(sorted(range(count), key=wanted.__getitem__)):
        parts[index] = min(wanted[index], left / (count - position))
        left -= parts[index]
    return parts


@dataclass
class _Member:
    """One edge process."""

    id: str
    used: dict[str, Parts]  # the most that it may be using
    sent: dict[str, Parts]  # what it was sent last
    demands: dict[str, Parts] = field(default_factory=dict)
    seq: int = 0
    gone_s: float | None = None

    def uses(self, key: str) -> Parts:
        return self.used.get(key) or self.used.get(ANY, NOTHING)

    def has(self, key: str) -> Parts:
        return self.sent.get(key) or self.sent.get(ANY, NOTHING)


class Ledger:
    """Who was sent which parts, and may still be using them."""

    def __init__(self) -> None:
        # The whole mutable state: processes by name, when a key was last asked for, which keys'
        # parts are not where they should be, and until when none may grow.
        self._members: dict[str, _Member] = {}
        self._asked_s: dict[str, float] = {}
        self._due: set[str] = set()
        self._settled_s: float | None = None

    def join(self, name: str, id: str, used: Mapping[str, Parts], now_s: float) -> None:
        """Take in an edge process with the parts that it says it uses.

        Args:
            name: of this life of the process.
            id: which its predecessor had, and its successor will have.
            used: parts by key, with those of ``""`` for keys that are not named.
            now_s: on the clock of all other calls.
        """
        if self._settled_s is None:
            self._settled_s = now_s + SETTLE_S
        before = self._members.get(name)
        for other, member in list(self._members.items()):
            if member.id == id:
                del self._members[other]
        demands = before.demands if before is not None else {}
        self._members[name] = _Member(id, dict(used), dict(used), demands)
        for key in used:
            if key != ANY:
                self._asked_s.setdefault(key, now_s)
        self._all_due()

    def leave(self, name: str, now_s: float) -> None:
        """Take note that the connection of an edge process is gone."""
        member = self._members.get(name)
        if member is not None and member.gone_s is None:
            member.gone_s = now_s
            self._all_due()

    def demand(self, name: str, demands: Mapping[str, Parts], now_s: float) -> None:
        """Take note of what an edge process is asked for; of keys not named, nothing."""
        member = self._members.get(name)
        if member is None:
            return
        for key in demands:
            self._asked_s[key] = now_s
        self._due |= {*demands, *member.demands}
        member.demands = dict(demands)

    def confirm(self, name: str, seq: int) -> None:
        """Take note that an edge process keeps to what it was sent."""
        member = self._members.get(name)
        if member is not None and seq == member.seq:
            member.used = dict(member.sent)

    def grants(self, now_s: float) -> list[tuple[str, int, dict[str, Parts]]]:
        """Return what is to be sent now: name, seq, and all parts by key.

        Who is not named goes on with what it has.  Calling again after a confirmation gives what
        has become free by it.
        """
        for name, member in list(self._members.items()):
            if member.gone_s is not None and now_s - member.gone_s >= HOLD_S:
                del self._members[name]
                self._all_due()
        live = {name: m for name, m in self._members.items() if m.gone_s is None}
        if not live:
            return []
        ended = self._forget(live.values(), now_s)
        news: dict[str, dict[str, Parts]] = {}
        for key in sorted(self._due):
            is_there = self._share(key, live, news, now_s)
            if is_there:
                self._due.discard(key)
        found = []
        for name, member in live.items():
            if name in news or ended or not member.seq:
                sent = {k: p for k, p in member.sent.items() if k not in ended}
                sent.update(news.get(name, {}))
                self._send(member, sent)
                found.append((name, member.seq, sent))
        return found

    def _share(
        self,
        key: str,
        live: Mapping[str, _Member],
        news: dict[str, dict[str, Parts]],
        now_s: float,
    ) -> bool:
        """Decide the parts of one key; return whether everybody has what it should."""
        members = list(live.values())
        is_settled = self._settled_s is not None and now_s >= self._settled_s
        gone = [m.uses(key) for m in self._members.values() if m.gone_s is not None]
        parts: list[list[float]] = [[], [], []]
        is_there = True
        for kind in range(3):
            used = [m.uses(key)[kind] for m in members]
            if is_settled:
                wanted = split([m.demands.get(key, NOTHING)[kind] for m in members])
            else:
                wanted = [use / max(1.0, sum(used)) for use in used]
            grows = [max(0.0, want - use) for want, use in zip(wanted, used, strict=True)]
            free = 1 - sum(used) - sum(held[kind] for held in gone)
            # Not all of it where it is not there yet: the rest once others have confirmed.
            ratio = min(1.0, max(0.0, free) / sum(grows)) if any(grows) else 0.0
            for want, use, grow in zip(wanted, used, grows, strict=True):
                part = min(want, use) + grow * ratio
                parts[kind].append(min(1.0, part))
                is_there &= abs(want - part) <= STEP
        for index, (name, member) in enumerate(live.items()):
            new = (parts[0][index], parts[1][index], parts[2][index])
            old = member.has(key)
            is_new = key not in member.sent and key != ANY
            if is_new or _is_other(old, new):
                news.setdefault(name, {})[key] = new
                is_there = False  # until it is confirmed
        return is_there and is_settled

    def _send(self, member: _Member, sent: dict[str, Parts]) -> None:
        keys = {*member.used, *sent}
        before = {key: member.uses(key) for key in keys}
        member.sent = sent
        member.seq += 1
        member.used = {
            key: _most(before[key], sent.get(key) or sent.get(ANY, NOTHING)) for key in keys
        }

    def _forget(self, live: Iterable[_Member], now_s: float) -> set[str]:
        """Return the keys that need no parts of their own any more."""
        members = list(live)
        ended = set()
        for key, asked_s in list(self._asked_s.items()):
            if now_s - asked_s < IDLE_S or any(key in m.demands for m in members):
                continue
            if any(_is_other(member.uses(key), member.uses(ANY)) for member in members):
                self._due.add(key)
            else:  # everybody has the equal part by now: its name makes no difference
                ended.add(key)
                del self._asked_s[key]
                self._due.discard(key)
        return ended

    def _all_due(self) -> None:
        self._due |= {ANY, *self._asked_s}


def _is_other(old: Parts, new: Parts) -> bool:
    return any(
        abs(after - before) > max(STEP, STEP_RATIO * before)
        for before, after in zip(old, new, strict=True)
    )


def _most(one: Parts, other: Parts) -> Parts:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])
