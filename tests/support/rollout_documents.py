"""A rollout as the controller shows it: the JSON of the question `rollout`."""

from __future__ import annotations

from typing import Any


def shown_arm(name: str, version: str, weight: float, **more: Any) -> dict[str, Any]:
    """Return one arm of it."""
    return {
        **{"name": name, "role": "baseline" if name == "stable" else "candidate", "model": "m"},
        **{"version": version, "weight": weight, "seen": None, "requests": 0, "errors": 0},
        **{"slow": None, "replicas": 1, "error_rate": None, "error_low": None},
        **{"error_high": None, "p50_ms": None, "p99_ms": None, "score_mean": None, "classes": {}},
        **more,
    }


def shown_rollout(**more: Any) -> dict[str, Any]:
    """Return a rollout at its second step of three; `more` replaces what it names."""
    stable = shown_arm(
        *("stable", "1", 95.0),
        **{"seen": 94.6, "requests": 1234, "errors": 12, "error_rate": 0.00972},
        **{"error_low": 0.0051, "error_high": 0.0172, "p50_ms": 1.2, "p99_ms": 3.4},
    )
    canary = shown_arm("canary", "2", 5.0, seen=5.4, requests=70, p50_ms=1.3)
    return {
        **{"endpoint": "m", "revision": 7, "id": "0123", "state": "running", "wish": "run"},
        **{"step": 2, "segment": 2, "reason": "the hold has passed"},
        **{"at": "2026-11-26T13:02:00Z", "waits_for": "", "held_s": 12.0, "hold_s": 60.0},
        "steps": [{"weight": weight, "hold_s": 60} for weight in (1, 5, 100)],
        **{"warm": 1, "wanted": 1, "variants": [stable, canary], "guard": {}},
        "e_values": {"errors": {"log_e": 0.4, "fires_at_log_e": 3.0}},
        **{"harms": [], "worse": "", "mismatch": "", "segments": [], "shadow": None},
        **more,
    }


def shown_shadow(**more: Any) -> dict[str, Any]:
    """Return how a shadow compares."""
    return {
        **{"offered": 120, "dropped": 20, "failed": 1, "compared": 99, "unlike": 2, "rows": 97},
        **{"top1_off": 3, "error_mean": 0.001, "error_max": 0.5, "last_failure": ""},
        "worst": [{"request_id": "r1", "inputs": "ab12", "relative_error": 0.5, "detail": "y"}],
        **more,
    }
