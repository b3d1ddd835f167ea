"""One endpoint: who calls it, what they get, and where the time goes."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from edge.arm_metrics import PHASES
from infra.monitoring.dashboards.panels import board, choice, lines, number

_THIS = 'endpoint="$endpoint"'


def endpoint() -> Dashboard:
    """Return the dashboard of one endpoint."""
    return (
        board("endpoint", "endpoint", "One endpoint: answers, time, cache, variants.")
        .with_variable(choice("endpoint", "tidepool_weight"))
        .with_panel(number("Answers", "reqps", f"tidepool:answers:rate5m{{{_THIS}}}"))
        .with_panel(
            number(
                "Failed, of the last hour",
                "percentunit",
                f'tidepool:failures:ratio{{{_THIS},window="1h"}}',
                decimals=3,
            )
        )
        .with_panel(
            number(
                "Slow, of the last hour",
                "percentunit",
                f'tidepool:slow:ratio{{{_THIS},window="1h"}}',
                decimals=3,
            )
        )
        .with_panel(number("p99", "s", f"tidepool:request_seconds:p99{{{_THIS}}}"))
        .with_panel(
            number(
                "Warm replicas",
                "short",
                f"sum(max by (variant) (tidepool_replicas{{{_THIS}}}))",
            )
        )
        .with_panel(
            number(
                "1,000 answers",
                "currencyUSD",
                f"tidepool:device_cost:usd_per_1000{{{_THIS}}}",
                says="Time on devices by their price; nothing where no price is configured.",
                decimals=4,
            )
        )
        .with_row(Row("Answers"))
        .with_panel(
            lines(
                "Requests by their end",
                "reqps",
                {"{{status}}": f"sum by (status) (rate(tidepool_requests_total{{{_THIS}}}[5m]))"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "From head to answer",
                "s",
                {
                    "p50": f"tidepool:request_seconds:p50{{{_THIS}}}",
                    "p99": f"tidepool:request_seconds:p99{{{_THIS}}}",
                },
            )
        )
        .with_panel(
            lines(
                "Failed and slow, by window",
                "percentunit",
                {
                    "failed {{window}}": f"tidepool:failures:ratio{{{_THIS}}}",
                    "slow {{window}}": f"tidepool:slow:ratio{{{_THIS}}}",
                },
            )
        )
        .with_row(Row("Where the time goes"))
        .with_panel(
            lines(
                "Mean of each phase",
                "s",
                {
                    phase: f"sum(rate(tidepool_{phase}_seconds_sum{{{_THIS}}}[5m]))"
                    f" / sum(rate(tidepool_{phase}_seconds_count{{{_THIS}}}[5m]))"
                    for phase in PHASES
                },
            )
        )
        .with_panel(
            lines(
                "p99 of each phase",
                "s",
                {
                    phase: "histogram_quantile(0.99, sum by (le) "
                    f"(rate(tidepool_{phase}_seconds_bucket{{{_THIS}}}[5m])))"
                    for phase in PHASES
                },
            )
        )
        .with_panel(
            lines(
                "Rows of a batch",
                "short",
                {
                    "mean": f"sum(rate(tidepool_rows_total{{{_THIS}}}[5m]))"
                    f" / sum(rate(tidepool_executions_total{{{_THIS}}}[5m]))",
                    "p90, by calls": "histogram_quantile(0.9, sum by (le) "
                    f"(rate(tidepool_batch_rows_bucket{{{_THIS}}}[5m])))",
                },
            )
        )
        .with_row(Row("Cache, cold starts, variants"))
        .with_panel(
            lines(
                "Cache",
                "reqps",
                {"{{outcome}}": f"sum by (outcome) (rate(tidepool_cache_total{{{_THIS}}}[5m]))"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Cold calls, and calls that wait for a load",
                "short",
                {
                    "cold a minute": f"60 * sum(rate(tidepool_cold_calls_total{{{_THIS}}}[5m]))",
                    "wait now": f"max(tidepool_held{{{_THIS}}})",
                },
            )
        )
        .with_panel(
            lines(
                "Calls by variant",
                "reqps",
                {
                    "{{variant}} ({{version}})": "sum by (variant, version) "
                    f"(rate(tidepool_requests_total{{{_THIS}}}[5m]))"
                },
                stacked=True,
            )
        )
    )
