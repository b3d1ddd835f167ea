"""A rollout as the controller shows it: the JSON of the question `rollout`."""

from __future__ import annotations

from typing import Any


def shown_arm(name: str, version: str, weight: float, **more: Any) -> dict[str, Any]:
    """Return one arm of it."""
    unknown = ("share_seen", "error_rate", "error_low", "error_high", "p50_ms", "p99_ms")
    counts = ("requests", "errors", "calls", "units", "failed_calls", "failed_units", "slow_calls")
    return {
        **{"name": name, "role": "baseline" if name == "stable" else "candidate", "model": "m"},
        **{"version": version, "weight": weight, "replicas": 1, "classes": {}},
        **dict.fromkeys((*unknown, "hit_share", "score_mean", "score_std")),
        **dict.fromkeys(counts, 0),
        **more,
    }


def shown_rollout(**more: Any) -> dict[str, Any]:
    """Return a rollout at its second step of three; `more` replaces what it names."""
    stable = shown_arm(
        *("stable", "1", 95.0),
        **{"share_seen": 94.6, "requests": 2000, "errors": 13, "hit_share": 0.38, "calls": 1234},
        **{"failed_calls": 12, "error_rate": 0.00972, "error_low": 0.0051, "error_high": 0.0172},
        **{"p50_ms": 1.2, "p99_ms": 3.4},
    )
    canary = shown_arm("canary", "2", 5.0, share_seen=5.4, requests=75, calls=70, p50_ms=1.3)
    return {
        **{"endpoint": "m", "id": "0123", "state": "running", "wish": "run", "live": True},
        **{"step": 2, "segment": 2, "reason": "the hold has passed", "at": "2026-11-26T13:02:00Z"},
        **{"waits_for": "", "hold_left_s": 48.0, "warm": 1, "wanted": 1},
        "steps": [{"weight": weight, "hold_s": 60.0} for weight in (1, 5, 100)],
        **{"guard": {"slower_than_ms": None}, "variants": [stable, canary], "segments": []},
        **{"e_values": {"errors": 1.5}, "fires_at": {"errors": 20.0}, "evidence": None},
        **{"harms": [], "worse": "", "mismatch": "", "verdict": "no evidence of harm"},
        "shadow": None,
        **more,
    }


def shown_shadow(**more: Any) -> dict[str, Any]:
    """Return how a shadow compares."""
    return {
        **{
            "offered": 120,
            "dropped": 20,
            "absent": 3,
            "failed": 1,
            "compared": 99,
            "unlike": 2,
            "rows": 97,
        },
        **{"top1_off": 3, "error_mean": 0.001, "error_max": 0.5, "last_failure": ""},
        "worst": [
            {
                "request_id": "r1",
                "inputs": "ab12",
                "relative_error": 0.5,
                "detail": "y",
                "kind": "top1",
            }
        ],
        **more,
    }
