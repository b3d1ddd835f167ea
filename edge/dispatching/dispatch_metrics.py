"""What dispatch counts, under the names that the metrics show."""

from __future__ import annotations

from edge.dispatching.dispatch import Pool
from edge.metrics import Counter

Totals = tuple[list[Counter], list[Counter]]


def dispatch_totals(pool: Pool) -> Totals:
    """Return the counters and the gauges of one process's calls to workers."""
    counters = {
        "tidepool_dispatch_calls": pool.calls_begun,
        "tidepool_dispatch_attempts": pool.engines.sent,
        "tidepool_dispatch_retries": pool.retries,
        "tidepool_dispatch_retries_refused": pool.retries_refused,
        "tidepool_dispatch_returns": pool.returns,
        "tidepool_dispatch_hedges": pool.twins.sent,
        "tidepool_dispatch_hedges_won": pool.twins.won,
    }
    found = [Counter(name, (), value) for name, value in counters.items()]
    for name, by_ref in (
        ("tidepool_fallback_answers", pool.helped),
        ("tidepool_no_instance_refusals", pool.refused_far),
    ):
        found += [Counter(name, ref, count) for ref, count in by_ref.items()]
    ejections = {"silent": pool.silences, **pool.engines.ejections}
    found += [Counter("tidepool_dispatch_ejections", (why,), n) for why, n in ejections.items()]
    return found, [Counter("tidepool_dispatch_workers_away", (), len(pool.away()))]
