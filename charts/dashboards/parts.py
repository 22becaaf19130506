"""The parts that all dashboards share: variables, graphs, single numbers and PromQL phrases.

A graph shows a gauge as its mean over the step, not as one chance sample of it, so every query
ranges over `$__rate_interval` and zooming out loses nothing.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import common, dashboard

INTERVAL = "[$__rate_interval]"
RELEASE = 'namespace="$namespace", release="$release"'
ENGINE = RELEASE + ', model=~"$model"'
# Triton counts the streaming companion of a model as a model of its own.
TRITON = RELEASE + ', model=~"(${model:regex})(_stream)?"'
WORKLOAD = 'namespace="$namespace", deployment="$deployment"'
# Without the container's name the pods of model-sync would be among them.
SERVERS = 'namespace="$namespace", pod=~"$deployment-.*", container="triton"'

WIDTH = 24
_DATASOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "triton"

Query = tuple[str, str]  # expression, legend


def rate(metric: str, labels: str = ENGINE) -> str:
    """Return the rate of a counter."""
    return f"rate({metric}{{{labels}}}{INTERVAL})"


def mean(metric: str, labels: str = ENGINE) -> str:
    """Return the mean of a gauge over the step of the graph."""
    return f"avg_over_time({metric}{{{labels}}}{INTERVAL})"


def quantile(share: float, metric: str, by: str = "le", labels: str = ENGINE) -> str:
    """Return a quantile of the histogram `metric` (without `_bucket`) over all pods."""
    return f"histogram_quantile({share}, sum by ({by}) ({rate(metric + '_bucket', labels)}))"


def quantiles(metric: str) -> tuple[Query, ...]:
    """Return the median, p95 and p99 of a histogram over all pods and chosen models."""
    return tuple((quantile(share, metric), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99))


def per_second(metric: str, by: str = "", labels: str = ENGINE) -> str:
    """Return the rate of a counter, summed by labels."""
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, labels)})"


class Page:
    """Collects rows and panels of one dashboard and gives each its number and place."""

    def __init__(self, *, uid: str, title: str, description: str) -> None:
        """Start a dashboard with the variables and links that all have."""
        self._ids = itertools.count(1)
        self.dashboard = (
            builders.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([_TAG])
            .readonly()
            .refresh("30s")
            .time("now-1h", "now")
            .timezone("browser")
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
            .link(
                builders.DashboardLink("Triton")
                .type(dashboard.DashboardLinkType.DASHBOARDS)
                .tags([_TAG])
                .as_dropdown(True)
                .include_vars(True)
                .keep_time(True)
            )
            .with_variable(
                builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
            )
        )
        self.variable(
            "namespace", "Namespace", "label_values(nv_inference_request_success, namespace)"
        )
        self.variable(
            "release",
            "Release",
            'label_values(nv_inference_request_success{namespace="$namespace"}, release)',
        )

    def variable(
        self, name: str, label: str, query: str, *, regex: str = "", several: bool = False
    ) -> None:
        """Add a variable whose values Prometheus knows; `several` allows more than one, and all."""
        made = (
            builders.QueryVariable(name)
            .label(label)
            .datasource(_DATASOURCE)
            .query({"query": query, "refId": name})
            .regex(regex)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        )
        if several:
            made = made.multi(True).include_all(True).all_value(".+")
        self.dashboard.with_variable(made)

    def models(self) -> None:
        """Add the variable `model`, without the streaming companions."""
        self.variable(
            "model",
            "Model",
            "label_values(nv_inference_request_success"
            '{namespace="$namespace", release="$release"}, model)',
            regex="/^((?!.*_stream$).+)$/",
            several=True,
        )

    def deployments(self) -> None:
        """Add the variable `deployment`, because kube-state-metrics and DCGM know no releases.

        It is the name of a pod of the release without the parts of ReplicaSet and pod.
        """
        self.variable(
            "deployment",
            "Deployment",
            "label_values(nv_inference_request_success"
            '{namespace="$namespace", release="$release"}, pod)',
            regex="/^(.+)-[0-9a-z]+-[0-9a-z]{5}$/",
        )

    def row(self, title: str) -> None:
        """Start a row."""
        self.dashboard.with_row(builders.Row(title).id(next(self._ids)))

    def graph(
        self,
        title: str,
        description: str,
        unit: str,
        *queries: Query,
        width: int = WIDTH // 2,
        stacked: bool = False,
        top: float | None = None,
    ) -> None:
        """Add a graph over time; its legend shows the last and the highest value."""
        legend = (
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        mode = common.StackingMode.NORMAL if stacked else common.StackingMode.NONE
        panel = (
            timeseries.Panel()
            .legend(legend)
            .tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
            .line_width(1)
            .fill_opacity(30 if stacked else 5)
            .show_points(common.VisibilityMode.NEVER)
            .stacking(common_builders.StackingConfig().mode(mode).group("A"))
            .span(width)
            .height(8)
        )
        if top is not None:
            panel = panel.max(top)
        self._add(panel, title, description, unit, queries)

    def number(self, title: str, description: str, unit: str, expression: str) -> None:
        """Add one number, six of which make a line."""
        reduce = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
        panel = (
            stat.Panel()
            .reduce_options(reduce)
            .graph_mode(common.BigValueGraphMode.AREA)
            .color_mode(common.BigValueColorMode.NONE)
            .span(WIDTH // 6)
            .height(4)
        )
        self._add(panel, title, description, unit, [(expression, title)])

    def _add(
        self,
        panel: timeseries.Panel | stat.Panel,
        title: str,
        description: str,
        unit: str,
        queries: Sequence[Query],
    ) -> None:
        panel = panel.id(next(self._ids)).title(title).description(description).unit(unit)
        panel = panel.datasource(_DATASOURCE).min(0).no_value("no data")
        for letter, (expression, legend) in zip(string.ascii_uppercase, queries, strict=False):
            panel = panel.with_target(
                prometheus.Dataquery()
                .expr(expression)
                .legend_format(legend)
                .ref_id(letter)
                .range()
                .datasource(_DATASOURCE)
            )
        self.dashboard.with_panel(panel)
