"""The first look: is anything wrong, and where."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.monitoring.dashboards.panels import board, lines, number


def overview() -> Dashboard:
    """Return the dashboard of the whole fleet."""
    return (
        board("overview", "overview", "The whole fleet: answers, burnt objectives, the pool, age.")
        .with_panel(number("Alerts", "short", 'count(ALERTS{alertstate="firing"}) or vector(0)'))
        .with_panel(number("Answers", "reqps", "sum(tidepool:answers:rate5m)"))
        .with_panel(
            number(
                "Failed, of the last hour",
                "percentunit",
                "sum(sum_over_time(tidepool:failures:rate5m[1h]))"
                " / sum(sum_over_time(tidepool:answers:rate5m[1h]))",
                decimals=3,
            )
        )
        .with_panel(
            number(
                "p99",
                "s",
                "histogram_quantile(0.99, sum by (le) (rate(tidepool_request_seconds_bucket[5m])))",
            )
        )
        .with_panel(
            number(
                "Workers that serve",
                "short",
                'count(max by (worker) (tidepool_worker_state{state="ready"})) or vector(0)',
            )
        )
        .with_panel(number("Edges that are read", "short", 'sum(up{job="tidepool"})'))
        .with_row(Row("Answers"))
        .with_panel(
            lines("Answers", "reqps", {"{{endpoint}}": "tidepool:answers:rate5m"}, stacked=True)
        )
        .with_panel(
            lines(
                "Failures",
                "reqps",
                {
                    "{{endpoint}} {{status}}": "sum by (endpoint, status) "
                    '(rate(tidepool_requests_total{status=~"5.."}[5m]))'
                },
                stacked=True,
            )
        )
        .with_panel(lines("p99", "s", {"{{endpoint}}": "tidepool:request_seconds:p99"}))
        .with_panel(
            lines(
                "Availability: budget burnt, times what is allowed",
                "short",
                {
                    "{{endpoint}} {{window}}": 'tidepool:failures:ratio{window=~"1h|6h"}'
                    " / scalar(tidepool:objective:failed_share)"
                },
                says="At 1 the objective is just met; 14.4 for an hour wakes somebody.",
            )
        )
        .with_panel(
            lines(
                "Latency: budget burnt, times what is allowed",
                "short",
                {
                    "{{endpoint}} {{window}}": 'tidepool:slow:ratio{window=~"1h|6h"}'
                    " / scalar(tidepool:objective:slow_share)"
                },
            )
        )
        .with_panel(
            lines(
                "Out of the cache, and cold",
                "percentunit",
                {
                    "{{endpoint}} cached": "tidepool:cache_hits:ratio1h",
                    "{{endpoint}} cold": "tidepool:cold_calls:ratio1h",
                },
            )
        )
        .with_row(Row("Pool"))
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
                "Requests under way",
                "short",
                {
                    "edges": "sum(tidepool_in_flight)",
                    "workers": "sum(max by (worker) (tidepool_worker_calls))",
                },
            )
        )
        .with_panel(
            lines(
                "How old what is known is",
                "s",
                {
                    "edge {{instance}}": "max by (instance) (tidepool_controller_silence_seconds)",
                    "registry": "min(tidepool_registry_age_seconds)",
                },
                says="Since each edge heard of the controller, and the controller read the "
                "registry in full.",
            )
        )
        .with_panel(
            lines(
                "Calls sent again",
                "reqps",
                {
                    "their worker was lost": "sum(rate(tidepool_dispatch_retries_total[5m]))",
                    "their worker drained": "sum(rate(tidepool_dispatch_returns_total[5m]))",
                    "to a second replica": "sum(rate(tidepool_dispatch_hedges_total[5m]))",
                    "refused": "sum(rate(tidepool_dispatch_retries_refused_total[5m]))",
                },
            )
        )
        .with_panel(
            lines(
                "Refused by quota",
                "reqps",
                {"{{limit}}": "sum by (limit) (rate(tidepool_quota_refusals_total[5m]))"},
            )
        )
        .with_panel(
            lines(
                "What does not fit",
                "short",
                {
                    "documents": "max(tidepool_documents_rejected)",
                    "quarantined requests of {{model}}": "max by (model) (tidepool_quarantined)",
                    "plans that failed": 'max(tidepool_plans{state="failed"})',
                },
            )
        )
    )
