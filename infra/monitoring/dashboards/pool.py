"""The pool: workers, instances, and what waking takes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.monitoring.dashboards.panels import board, lines

# The pool's view comes once from every edge.
_WAKES = "max without (instance) (rate(tidepool_wake_seconds_bucket[30m]))"
_PHASE = "max without (instance) (increase(tidepool_wake_phase_seconds_{}[6h]))"


def pool() -> Dashboard:
    """Return the dashboard of workers, instances and cold starts."""
    return _cold_starts(_workers(board("pool", "pool and cold starts", "Workers and instances.")))


def _workers(shown: Dashboard) -> Dashboard:
    return (
        shown.with_row(Row("Workers"))
        .with_panel(
            lines(
                "Workers",
                "short",
                {"{{state}}": "count by (state) (max by (worker, state) (tidepool_worker_state))"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Calls that wait or run",
                "short",
                {"{{worker}}": "max by (worker) (tidepool_worker_calls)"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "How long a call would wait now",
                "s",
                {"{{worker}}": "max by (worker) (tidepool_worker_wait_seconds)"},
            )
        )
        .with_panel(
            lines(
                "Memory of engines",
                "bytes",
                {
                    "{{worker}}": "sum by (worker) "
                    "(max by (worker, model, version) (tidepool_engine_bytes))"
                },
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Share of the time in which engines run",
                "percentunit",
                {
                    "{{worker}}": "sum by (worker) (max without (instance) "
                    "(rate(tidepool_engine_run_seconds_total[5m])))"
                },
            )
        )
        .with_panel(
            lines(
                "Workers that edges leave alone",
                "short",
                {
                    "{{worker}}": "max by (worker) (tidepool_worker_away)",
                    "ejections a minute: {{why}}": "60 * sum by (why) "
                    "(rate(tidepool_dispatch_ejections_total[5m]))",
                },
            )
        )
    )


def _cold_starts(shown: Dashboard) -> Dashboard:
    return (
        shown.with_row(Row("Instances and places"))
        .with_panel(
            lines(
                "Instances",
                "short",
                {
                    "{{pool}} {{state}}": "max by (pool, state) (tidepool_instances)",
                    "{{pool}} at most": "max by (pool) (tidepool_instances_max)",
                },
                says="On AWS only.",
            )
        )
        .with_panel(
            lines(
                "Places for workers",
                "short",
                {"{{state}}": "sum by (state) (max by (node, state) (tidepool_places))"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "States of versions",
                "short",
                {
                    "{{state}}": "sum by (state) "
                    "(max by (model, version, state) (tidepool_version_state))"
                },
                says="asleep: a worker that is there would load it; no_instance: nobody is there.",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Calls while no instance is there",
                "reqps",
                {
                    "answered by the fallback": "sum(rate(tidepool_fallback_answers_total[5m]))",
                    "refused": "sum(rate(tidepool_no_instance_refusals_total[5m]))",
                },
            )
        )
        .with_panel(
            lines(
                "How long an instance takes, as learned",
                "s",
                {"learned": "max(tidepool_instance_start_seconds)"},
            )
        )
        .with_panel(
            lines(
                "Calls of the cloud's API",
                "reqps",
                {
                    "{{call}} {{outcome}}": "sum by (call, outcome) (max without (instance) "
                    "(rate(tidepool_launcher_calls_total[15m])))"
                },
            )
        )
        .with_row(Row("Cold starts"))
        .with_panel(
            lines(
                "Cold calls a minute",
                "short",
                {"{{endpoint}}": "60 * sum by (endpoint) (rate(tidepool_cold_calls_total[5m]))"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Loads (load) and starts of processes (start)",
                "s",
                {
                    f"p{round(q * 100)} {{{{of}}}} {{{{engine}}}}": f"histogram_quantile({q}, "
                    f"sum by (of, engine, le) ({_WAKES}))"
                    for q in (0.5, 0.95)
                },
            )
        )
        .with_panel(
            lines(
                "Mean of their phases, over 6 hours",
                "s",
                {
                    "{{of}} {{engine}} {{phase}}": "sum by (of, engine, phase) "
                    f"({_PHASE.format('sum')}) / sum by (of, engine, phase) "
                    f"({_PHASE.format('count')})"
                },
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Plans",
                "short",
                {"{{state}}": "max by (state) (tidepool_plans)"},
                says="Engines that are built beforehand for a kind of device.",
            )
        )
    )
