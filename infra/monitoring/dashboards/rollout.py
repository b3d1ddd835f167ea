"""A rollout: how far it is, and what its guards see."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.monitoring.dashboards.panels import board, choice, lines, number

_THIS = 'endpoint="$endpoint"'
_ARM = "{{variant}} ({{version}})"


def _arms(metric: str) -> str:
    return f"max by (variant, version) (tidepool_{metric}{{{_THIS}}})"


def _one(metric: str) -> str:
    return f"max(tidepool_rollout_{metric}{{{_THIS}}})"


def rollout() -> Dashboard:
    """Return the dashboard of an endpoint's rollout."""
    shown = (
        board("rollout", "rollout", "How far a rollout is, and what its guards see.")
        .with_variable(choice("endpoint", "tidepool_rollout_step"))
        .with_panel(number("Step", "short", _one("step")))
        .with_panel(number("Of", "short", _one("steps")))
        .with_panel(number("Harm", "short", _one("harm"), says="1: it is rolled back for it."))
        .with_panel(
            number("Uneven", "short", _one("mismatch"), says="1: units are split otherwise.")
        )
        .with_panel(number("Warm replicas", "short", _one("warm")))
        .with_panel(number("Needed by the next step", "short", _one("wanted")))
        .with_row(Row("Arms"))
        .with_panel(
            lines(
                "State",
                "short",
                {"{{state}}": f"max by (state) (tidepool_rollout_state{{{_THIS}}})"},
            )
        )
        .with_panel(
            lines(
                "Weight, and share that is seen",
                "percent",
                {f"{_ARM} is to": _arms("weight"), f"{_ARM} has": _arms("rollout_share_seen")},
            )
        )
        .with_panel(
            lines(
                "Calls that the guards watch",
                "short",
                {
                    f"{_ARM} all": _arms("rollout_calls"),
                    f"{_ARM} failed": _arms("rollout_failed_calls"),
                    f"{_ARM} slow": _arms("rollout_slow_calls"),
                },
            )
        )
        .with_panel(
            lines(
                "Units that failed, with the interval that holds at every look",
                "percentunit",
                {
                    _ARM: _arms("rollout_error_rate"),
                    f"{_ARM} at least": _arms("rollout_error_low"),
                    f"{_ARM} at most": _arms("rollout_error_high"),
                },
            )
        )
        .with_panel(
            lines(
                "Evidence of harm, by guard",
                "short",
                {"{{guard}}": f"max by (guard) (tidepool_rollout_e_value{{{_THIS}}})"},
            )
        )
        .with_panel(lines("Mean score", "short", {_ARM: _arms("rollout_score_mean")}))
    )
    return _shadow(shown)


def _shadow(shown: Dashboard) -> Dashboard:
    return (
        shown.with_row(Row("Shadow"))
        .with_panel(
            lines(
                "Copies of calls",
                "short",
                {
                    what: _one(f"shadow_{what}")
                    for what in ("offered", "dropped", "failed", "compared", "unlike")
                },
            )
        )
        .with_panel(
            lines(
                "Answers that differ",
                "percentunit",
                {
                    "another class first": f"{_one('shadow_top1_off')} / {_one('shadow_rows')}",
                    "mean relative error": _one("shadow_error_mean"),
                    "largest relative error": _one("shadow_error_max"),
                },
            )
        )
        .with_panel(lines("Time on devices", "s", {"copies": _one("shadow_device_seconds")}))
    )
