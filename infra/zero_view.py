"""The two zeros in words: a version that sleeps on a machine that is up, and one that has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]


def zero_words(row: Document) -> str:
    """Return where a version is for its callers, if that is worth a word; else the empty text.

    Args:
        row: a variant of `status`, or a version of `status --why`, with `state` and `wake_ms`.

    >>> zero_words({"state": "no_instance", "wake_ms": 240_000})
    'asleep, and no instance is up: one takes about 4 min'
    >>> zero_words({"state": "starting", "wake_ms": None})
    'asleep; an instance is starting'
    >>> zero_words({"state": "asleep", "wake_ms": 80})
    'asleep on a machine that is up: a wake takes about 80 ms'
    """
    wake = f" about {_shown(row['wake_ms'])}" if row.get("wake_ms") else ""
    match row.get("state"):
        case "asleep":
            return "asleep on a machine that is up" + (wake and f": a wake takes{wake}")
        case "no_instance" if wake and row["wake_ms"] < 10_000:
            return f"asleep, and no instance is up: fallback workers answer after{wake}"
        case "no_instance":
            return "asleep, and no instance is up" + (wake and f": one takes{wake}")
        case "starting":
            return "asleep; an instance is starting" + (wake and f": that takes{wake} more")
        case "fallback":
            return "on fallback workers, while no other worker has it warm"
    return ""


def _shown(wake_ms: float) -> str:
    if wake_ms < 1000:
        return f"{wake_ms:.0f} ms"
    return f"{wake_ms / 1000:.3g} s" if wake_ms < 120_000 else f"{wake_ms / 60_000:.2g} min"
