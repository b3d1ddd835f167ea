"""The kinds of panels that the dashboards are made of; each expression comes with its legend."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Final

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableRefresh,
)

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${source}")
WHOLE: Final = 24  # columns of a dashboard
HEIGHT, HEIGHT_OF_NUMBER = 8, 4


def board(name: str, title: str, says: str) -> dashboard.Dashboard:
    """Return an empty dashboard, whose data source is chosen at its head."""
    return (
        dashboard.Dashboard(f"Tidepool: {title}")
        .uid(f"tidepool-{name}")
        .description(says)
        .tags(["tidepool"])
        .readonly()
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("30s")
        .with_variable(dashboard.DatasourceVariable("source").label("Source").type("prometheus"))
        .link(
            dashboard.DashboardLink("Tidepool").tags(["tidepool"]).as_dropdown(True).keep_time(True)
        )
    )


def choice(name: str, metric: str) -> dashboard.QueryVariable:
    """Return a variable whose values are those of a label of `metric`."""
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"query": f"label_values({metric}, {name})", "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )


def lines(
    title: str,
    unit: str,
    shown: Mapping[str, str],
    *,
    says: str = "",
    columns: int = WHOLE // 3,
    stacked: bool = False,
) -> timeseries.Panel:
    """Return a panel of curves: legend → expression."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(says)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(columns)
        .height(HEIGHT)
        .draw_style(GraphDrawStyle.LINE)
        .line_interpolation(LineInterpolation.STEP_AFTER if stacked else LineInterpolation.LINEAR)
        .fill_opacity(30 if stacked else 0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for name, (legend, expression) in zip(ascii_uppercase, shown.items(), strict=False):
        panel = panel.with_target(_query(expression, legend, name))
    return panel


def number(
    title: str,
    unit: str,
    expression: str,
    *,
    says: str = "",
    columns: int = WHOLE // 6,
    decimals: int | None = None,
) -> stat.Panel:
    """Return a panel of one number, the last one, over its curve."""
    panel = (
        stat.Panel()
        .title(title)
        .description(says)
        .datasource(SOURCE)
        .unit(unit)
        .span(columns)
        .height(HEIGHT_OF_NUMBER)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if decimals is not None:
        panel = panel.decimals(decimals)
    return panel.with_target(_query(expression, "", "A"))


def _query(expression: str, legend: str, name: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).datasource(SOURCE).range().ref_id(name)
    return query.legend_format(legend) if legend else query
