"""What it costs: instances, and each endpoint's part."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from infra.monitoring.dashboards.panels import board, lines, number


def cost() -> Dashboard:
    """Return the dashboard of instances and devices by their price."""
    return (
        board("cost", "cost", "Instances by their price, and each endpoint's part of them.")
        .with_panel(
            number(
                "Instances now, an hour",
                "currencyUSD",
                "sum(tidepool:instances:usd_per_hour)",
                says="Only of pools whose price is in recording.yml.",
                columns=6,
                decimals=2,
            )
        )
        .with_panel(
            number(
                "Instances, of the last day",
                "currencyUSD",
                "24 * sum(avg_over_time(tidepool:instances:usd_per_hour[1d]))",
                columns=6,
                decimals=2,
            )
        )
        .with_panel(
            number(
                "Allowed a day",
                "currencyUSD",
                "max(tidepool:objective:budget_usd_per_day)",
                columns=6,
                decimals=2,
            )
        )
        .with_panel(
            number(
                "A month at this rate",
                "currencyUSD",
                "730 * sum(avg_over_time(tidepool:instances:usd_per_hour[1d]))",
                columns=6,
                decimals=0,
            )
        )
        .with_row(Row("Instances"))
        .with_panel(
            lines(
                "Instances by their price",
                "currencyUSD",
                {"{{pool}}": "tidepool:instances:usd_per_hour"},
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Instances that run",
                "short",
                {"{{pool}}": "tidepool:instances:running"},
                stacked=True,
            )
        )
        .with_panel(lines("Rows computed", "ops", {"rows": "sum(rate(tidepool_rows_total[5m]))"}))
        .with_row(Row("Endpoints"))
        .with_panel(
            lines(
                "Time on devices, in a second",
                "percentunit",
                {
                    "{{endpoint}} {{device}}": "sum by (endpoint, device) "
                    "(rate(tidepool_device_seconds_total[5m]))"
                },
                says="Each call's part of its runs; 100 % is one device that is always busy.",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "The same by its price, in an hour",
                "currencyUSD",
                {
                    "{{endpoint}}": "3600 * sum by (endpoint) "
                    "(rate(tidepool_device_cost_usd_total[1h]))"
                },
                says="What devices that wait cost is not in it.",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "1,000 answers",
                "currencyUSD",
                {"{{endpoint}}": "tidepool:device_cost:usd_per_1000"},
            )
        )
        .with_panel(
            lines(
                "Copies for rollouts: time on devices",
                "s",
                {"{{endpoint}}": "max by (endpoint) (tidepool_rollout_shadow_device_seconds)"},
            )
        )
        .with_panel(
            lines(
                "Tasks and instances that nobody knew, in a day",
                "short",
                {
                    "{{what}}": "sum by (what) (max without (instance) "
                    "(increase(tidepool_launcher_leaks_total[1d])))"
                },
            )
        )
    )
