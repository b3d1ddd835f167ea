"""The answers that an edge process keeps in memory, and the keys they are found by.

S3-FIFO, bounded in bytes: a small queue takes what is new, so that what is asked for once leaves
again without having displaced anything; what was asked for again moves to the main queue.  Hits
only count, they move nothing.  No clock, no I/O: the time is passed in.  What may be cached, and
for how long, is decided by the endpoint's document.

Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
from blake3 import blake3

from edge.body_request import InferRequest, meta_of

V = TypeVar("V")

SMALL_SHARE = 0.1  # of the bytes, for what is new
ENTRY_SHARE_MAX = 0.125  # of the bytes; a larger answer would empty the cache for itself
ENTRY_BYTES = 512  # what an entry costs beside its answer: key, tables, tensors' heads
FREQUENCY_MAX = 3
GHOSTS_MIN = 64

_KEY_VERSION = b"tidepool answer 1\0"
_JOIN_BYTES_MAX = 16384  # up to here one hash call over a copy beats several calls
_meta = msgspec.msgpack.Encoder()


def cache_key(
    tenant: str, artifact_digest: str, precision: str, purged: str, request: InferRequest
) -> bytes:
    """Name an answer by everything that it depends on.

    Two requests have the same key exactly if all of tenant, artifact, precision class, purge,
    wanted outputs, relevant parameters and input tensors are the same.  How the tensors were
    written (JSON or binary) and how the answer is rendered do not matter.

    Returns:
        32 bytes: blake3 over the parts, every part with its length in front.
    """
    inputs = request.inputs
    meta = request.meta or meta_of(request)
    scope = _scope(tenant, artifact_digest, precision, purged)
    head = b"%b%b%b" % (scope, len(meta).to_bytes(8, "little"), meta)
    if len(inputs) == 1 and len(inputs[0].data) <= _JOIN_BYTES_MAX:
        return bytes(blake3(b"".join((head, inputs[0].data))).digest())
    hasher = blake3(head)
    for tensor in inputs:
        hasher.update(tensor.data)
    return bytes(hasher.digest())


@functools.lru_cache(maxsize=4096)
def _scope(tenant: str, artifact_digest: str, precision: str, purged: str) -> bytes:
    text = _meta.encode((tenant, artifact_digest, precision, purged))
    return _KEY_VERSION + len(text).to_bytes(8, "little") + text


@dataclass(slots=True)
class CacheCounters:
    """What a cache has done since it was made."""

    hits: int = 0
    misses: int = 0  # expired ones among them
    expired: int = 0
    stored: int = 0
    evicted: int = 0
    too_large: int = 0


class _Entry(Generic[V]):
    __slots__ = ("cost_bytes", "expires_s", "frequency", "kept_s", "leaves_s", "value")

    def __init__(
        self, value: V, cost_bytes: int, kept_s: float, expires_s: float, leaves_s: float
    ) -> None:
        self.value = value
        self.cost_bytes = cost_bytes
        self.kept_s = kept_s  # since when
        self.expires_s = expires_s
        self.leaves_s = leaves_s  # later, if it may be of use when it is stale
        self.frequency = 0


class AnswerCache(Generic[V]):
    """A bounded map from keys to answers; every operation is O(1), amortised."""

    def __init__(self, bytes_max: int) -> None:
        """Make an empty cache of at most `bytes_max` bytes; 0 stores nothing."""
        if bytes_max < 0:
            raise ValueError(f"a cache of {bytes_max} bytes")
        self.bytes_max = bytes_max
        self.counters = CacheCounters()
        # The whole mutable state: the two queues, oldest first, what they weigh, and the keys
        # that left the small queue lately without a second request.
        self._small: OrderedDict[bytes, _Entry[V]] = OrderedDict()
        self._main: OrderedDict[bytes, _Entry[V]] = OrderedDict()
        self._small_bytes = 0
        self._main_bytes = 0
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()
        self._small_bytes_max = int(bytes_max * SMALL_SHARE)
        self._entry_bytes_max = int(bytes_max * ENTRY_SHARE_MAX)

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def __repr__(self) -> str:
        return (
            f"<AnswerCache {len(self)} answers, {self.held_bytes} of {self.bytes_max} bytes, "
            f"{self.counters.hits} hits, {self.counters.misses} misses>"
        )

    @property
    def held_bytes(self) -> int:
        """What all entries weigh, their overhead included."""
        return self._small_bytes + self._main_bytes

    def get(self, key: bytes, now_s: float) -> V | None:
        """Return a fresh answer, or None; `find` also says how long it stays fresh."""
        found = self.find(key, now_s)
        return None if found is None else found[0]

    def find(self, key: bytes, now_s: float, ttl_s: float = math.inf) -> tuple[V, float] | None:
        """Return a fresh answer and the time until which it stays so, or None.

        Args:
            key: from `cache_key`.
            now_s: on the clock of `put`.
            ttl_s: how long who asks now takes an answer for fresh, if that is shorter than it was
                when the answer was kept: a spec was changed, or is another endpoint's.
        """
        entry = self._small.get(key) or self._main.get(key)
        if entry is None:
            self.counters.misses += 1
            return None
        until_s = min(entry.expires_s, entry.kept_s + ttl_s)
        if until_s <= now_s:
            self.counters.misses += 1
            if entry.leaves_s <= now_s:
                self._remove(key)
                self.counters.expired += 1
            return None
        if entry.frequency < FREQUENCY_MAX:
            entry.frequency += 1
        self.counters.hits += 1
        return entry.value, until_s

    def find_stale(self, key: bytes, now_s: float) -> tuple[V, float] | None:
        """Return an answer that is kept though it is not fresh, and since when, or None.

        Args:
            key: from `cache_key`.
            now_s: on the clock of `put`.
        """
        entry = self._small.get(key) or self._main.get(key)
        if entry is None or not entry.expires_s <= now_s < entry.leaves_s:
            return None
        if entry.frequency < FREQUENCY_MAX:
            entry.frequency += 1
        return entry.value, entry.expires_s

    def put(
        self,
        key: bytes,
        value: V,
        value_bytes: int,
        now_s: float,
        ttl_s: float,
        stale_s: float = 0.0,
    ) -> bool:
        """Keep an answer for `ttl_s` seconds, if there is room for it.

        Args:
            key: from `cache_key`; an answer that it already names is replaced.
            value: must not be changed by anybody afterwards.
            value_bytes: what it weighs.
            now_s: the time.
            ttl_s: how long it stays fresh; 0 or less: it is stale already.
            stale_s: how long it is kept after that; without time left nothing is stored.

        Returns:
            Whether it was stored.  One above an eighth of the capacity is not.
        """
        self._remove(key)
        cost_bytes = value_bytes + ENTRY_BYTES
        if cost_bytes > self._entry_bytes_max:
            self.counters.too_large += 1
            return False
        if ttl_s + stale_s <= 0:
            return False
        entry = _Entry(value, cost_bytes, now_s, now_s + ttl_s, now_s + ttl_s + stale_s)
        while self.held_bytes + cost_bytes > self.bytes_max:
            self._evict(now_s)
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = entry
            self._main_bytes += cost_bytes
        else:
            self._small[key] = entry
            self._small_bytes += cost_bytes
        self.counters.stored += 1
        return True

    def purge(self) -> int:
        """Forget everything; returns how many answers there were."""
        count = len(self)
        self._small.clear()
        self._main.clear()
        self._ghosts.clear()
        self._small_bytes = self._main_bytes = 0
        return count

    def _remove(self, key: bytes) -> None:
        entry = self._small.pop(key, None)
        if entry is not None:
            self._small_bytes -= entry.cost_bytes
            return
        entry = self._main.pop(key, None)
        if entry is not None:
            self._main_bytes -= entry.cost_bytes

    def _evict(self, now_s: float) -> None:
        """Take one step towards more room: an entry leaves, or moves and loses its standing."""
        if self._small and (self._small_bytes > self._small_bytes_max or not self._main):
            key, entry = self._small.popitem(last=False)
            self._small_bytes -= entry.cost_bytes
            if entry.leaves_s <= now_s:
                self.counters.expired += 1
            elif entry.frequency > 1:
                entry.frequency = 0
                self._main[key] = entry
                self._main_bytes += entry.cost_bytes
            else:
                self.counters.evicted += 1
                self._remember(key)
            return
        key, entry = self._main.popitem(last=False)
        if entry.leaves_s <= now_s:
            self._main_bytes -= entry.cost_bytes
            self.counters.expired += 1
        elif entry.frequency > 0:
            entry.frequency -= 1
            self._main[key] = entry
        else:
            self._main_bytes -= entry.cost_bytes
            self.counters.evicted += 1

    def _remember(self, key: bytes) -> None:
        self._ghosts[key] = None
        while len(self._ghosts) > max(GHOSTS_MIN, len(self._main)):
            self._ghosts.popitem(last=False)
