"""What the cache counts, under the names that the metrics show."""

from __future__ import annotations

from typing import Any

from edge.cache import AnswerCache
from edge.levels import Levels
from edge.metrics import Counter


def cache_totals(cache: AnswerCache[Any], levels: Levels) -> tuple[list[Counter], list[Counter]]:
    """Return the counters and the gauges of all levels of one process."""
    memory, older, disk = cache.counters, levels.counters, levels.disk
    counters = [
        *_by("tidepool_cache_lookups", "memory", hit=memory.hits, miss=memory.misses),
        *_by("tidepool_cache_stored", memory=memory.stored),
        *_by("tidepool_cache_stale", revalidate=older.stale, error=older.stale_if_error),
        *_by("tidepool_cache_renewals", ok=older.renewed, failed=older.not_renewed),
        *_by("tidepool_cache_renewals", put_off=older.put_off),
    ]
    gauges = [Counter("tidepool_cache_memory_bytes", (), cache.held_bytes)]
    if disk is not None:
        found = disk.counters
        counters += [
            *_by("tidepool_cache_lookups", "disk", hit=found.hits, miss=found.misses),
            *_by("tidepool_cache_lookups", "disk", late=found.late),
            *_by("tidepool_cache_stored", disk=found.stored),
            *_by("tidepool_cache_disk_dropped", read=found.dropped_reads),
            *_by("tidepool_cache_disk_dropped", write=found.dropped_writes),
            *_by("tidepool_cache_disk_dropped", paused_write=found.paused_writes),
            *_by("tidepool_cache_disk_dropped", too_large=found.too_large),
            *_by("tidepool_cache_disk_errors", damaged=found.damaged, **found.errors),
        ]
        gauges += [
            Counter("tidepool_cache_disk_bytes", (), disk.held_bytes),
            Counter("tidepool_cache_disk_off", (), float(disk.is_off)),
        ]
    return counters, gauges


def _by(name: str, *labels: str, **values: float) -> list[Counter]:
    return [Counter(name, (*labels, label), value) for label, value in values.items()]
