"""Which requests are not run any more because they kill the workers that run them: pure.

Rules:

- What was in flight when the connection to a worker was lost is a suspect.  It is to be run again
  alone, so that a next loss is the fault of one.
- It counts again only if a worker is lost that was running it and did nothing else, for whomever.
- A loss is a death once another process speaks in that worker's name.  If the same one does, the
  network was at fault and the loss counts for nothing; so it does if nobody ever speaks again.
- Two deaths: it is quarantined for `QUARANTINE_S`.
- Whoever comes to the end of a run has shown its innocence.

A request is known by its fingerprint: whoever sends the same inputs to the same artifact sends the
same request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
from blake3 import blake3

from pool.wire.data import TensorLike

QUARANTINE_S: Final = 600.0
SUSPECT_S: Final = 600.0  # as long a death is held against a request that has not run since
DEATHS_MAX: Final = 2
SUSPECTS_MAX: Final = 4096  # the oldest are let off
QUARANTINED_MAX: Final = 1024  # those that would end first are let off
CROWD: Final = 32  # if more of one model wait for a load that its worker dies of, it was the load

_FINGERPRINT_BYTES = 16
_KIND = b"tidepool request 1\0"
_encoder = msgspec.msgpack.Encoder()

Fingerprint: TypeAlias = bytes
Ref: TypeAlias = tuple[str, str]  # model, version
Verdict: TypeAlias = Literal["clear", "suspect", "open", "guilty"]


class Loss(NamedTuple):
    """A worker process whose connection was lost."""

    worker: str
    incarnation: str


class Row(NamedTuple):
    """A request in quarantine, as others are told of it."""

    fingerprint: Fingerprint
    ref: Ref
    left_s: float


def fingerprint_of(
    digest: str, inputs: Sequence[TensorLike], outputs: Sequence[str]
) -> Fingerprint:
    """Name a request by all that an engine sees of it.

    Args:
        digest: of the artifact.
        inputs: the tensors, in the request's order.
        outputs: the names wanted; empty: all.

    Returns:
        16 bytes of blake3 over the parts, every part with its length in front.
    """
    heads = [(t.name, t.datatype, tuple(t.shape), len(t.data)) for t in inputs]
    head = _encoder.encode((digest, tuple(outputs), heads))
    hasher = blake3(_KIND + len(head).to_bytes(8, "little") + head)
    for tensor in inputs:
        hasher.update(tensor.data)
    return bytes(hasher.digest(_FINGERPRINT_BYTES))


class _Suspect:
    __slots__ = ("losses", "ref", "until_s")

    def __init__(self, ref: Ref) -> None:
        self.ref = ref
        self.losses: dict[Loss, bool] = {}  # and whether that process has died, as far as is known
        self.until_s = 0.0


class Quarantine:
    """Suspects and those in quarantine, by their fingerprints.

    Attributes:
        watched: how many of either there are of a model; of those that are not in it, nobody needs
            to know a fingerprint.

    Times are on the caller's clock, the same in all calls.
    """

    def __init__(self) -> None:
        # The whole mutable state, in the order in which they came.
        self._suspects: dict[Fingerprint, _Suspect] = {}
        self._until_s: dict[Fingerprint, tuple[Ref, float]] = {}
        self.watched: Counter[Ref] = Counter()

    def blame(
        self, fingerprint: Fingerprint, ref: Ref, loss: Loss, now_s: float, *, was_only: bool
    ) -> None:
        """Take note that a request was in flight when a worker was lost.

        Args:
            was_only: its run had begun, and its worker did nothing else.
        """
        if fingerprint in self._until_s:
            return
        suspect = self._suspects.get(fingerprint)
        if suspect is None:
            if len(self._suspects) >= SUSPECTS_MAX:
                self._let_off(next(iter(self._suspects)))
            suspect = self._suspects[fingerprint] = _Suspect(ref)
            self.watched[ref] += 1
        elif not was_only:
            return
        suspect.losses[loss] = False
        suspect.until_s = now_s + SUSPECT_S

    def heard(self, worker: str, incarnation: str, now_s: float) -> list[Fingerprint]:
        """Learn from a process that speaks in a worker's name what became of the one before it.

        Returns:
            Those that are in quarantine from now on.
        """
        guilty = []
        for fingerprint, suspect in list(self._suspects.items()):
            for loss in [loss for loss in suspect.losses if loss.worker == worker]:
                if loss.incarnation != incarnation:
                    suspect.losses[loss] = True
                else:
                    del suspect.losses[loss]
            if not suspect.losses:
                self._let_off(fingerprint)
            elif sum(suspect.losses.values()) >= DEATHS_MAX:
                self.learn([Row(fingerprint, suspect.ref, QUARANTINE_S)], now_s)
                guilty.append(fingerprint)
        return guilty

    def give_up(self, fingerprint: Fingerprint) -> None:
        """Let those losses go of which nobody will say whether they were deaths."""
        suspect = self._suspects.get(fingerprint)
        if suspect is not None:
            suspect.losses = {loss: True for loss, died in suspect.losses.items() if died}
            if not suspect.losses:
                self._let_off(fingerprint)

    def ran(self, fingerprint: Fingerprint) -> None:
        """Take note that a run came to its end."""
        self._let_off(fingerprint)

    def verdict(self, fingerprint: Fingerprint, now_s: float) -> Verdict:
        """Say what is known of a request.

        Returns:
            clear: nothing is held against it; suspect: it may run, alone; open: it must wait until
            it is known whether its losses were deaths; guilty: it must not run.
        """
        if self.left_s(fingerprint, now_s):
            return "guilty"
        suspect = self._suspects.get(fingerprint)
        if suspect is None or suspect.until_s <= now_s:
            return "clear"
        return "suspect" if len(suspect.losses) < DEATHS_MAX else "open"

    def left_s(self, fingerprint: Fingerprint, now_s: float) -> float:
        """Return for how long a request stays in quarantine; 0: it is in none."""
        _, until_s = self._until_s.get(fingerprint, (None, now_s))
        return max(0.0, until_s - now_s)

    def learn(self, rows: Iterable[Row], now_s: float) -> list[Fingerprint]:
        """Take in what others know; return what is new."""
        new = []
        for fingerprint, ref, left_s in rows:
            until_s = now_s + min(left_s, QUARANTINE_S)
            known = self._until_s.get(fingerprint)
            if known is None:
                self._let_off(fingerprint)
                self.watched[ref] += 1
                new.append(fingerprint)
            elif known[1] >= until_s:
                continue
            self._until_s[fingerprint] = (ref, until_s)
        while len(self._until_s) > QUARANTINED_MAX:
            self._release(min(self._until_s, key=lambda one: self._until_s[one][1]))
        return new

    def rows(self, now_s: float) -> list[Row]:
        """Return those in quarantine."""
        return [
            Row(fingerprint, ref, until_s - now_s)
            for fingerprint, (ref, until_s) in self._until_s.items()
            if until_s > now_s
        ]

    def refs(self) -> Mapping[Fingerprint, Ref]:
        """Return the models of those in quarantine."""
        return {fingerprint: ref for fingerprint, (ref, _) in self._until_s.items()}

    def tidy(self, now_s: float) -> None:
        """Forget what is over."""
        for fingerprint, suspect in list(self._suspects.items()):
            if suspect.until_s <= now_s:
                self._let_off(fingerprint)
        for fingerprint, (_, until_s) in list(self._until_s.items()):
            if until_s <= now_s:
                self._release(fingerprint)

    def _let_off(self, fingerprint: Fingerprint) -> None:
        suspect = self._suspects.pop(fingerprint, None)
        if suspect is not None:
            self._unwatch(suspect.ref)

    def _release(self, fingerprint: Fingerprint) -> None:
        self._unwatch(self._until_s.pop(fingerprint)[0])

    def _unwatch(self, ref: Ref) -> None:
        self.watched[ref] -= 1
        if not self.watched[ref]:
            del self.watched[ref]
