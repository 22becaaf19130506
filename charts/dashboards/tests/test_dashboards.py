from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as Model

from dashboards import known_metrics, panels, promql
from dashboards.__main__ import differences, generate, rendered
from dashboards.panels import FOLDER, Dashboard, Panel, Query
from tools import place

DASHBOARDS = panels.load_all()
PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
QUERIES = list(panels.queries(DASHBOARDS))
KNOWN = (
    known_metrics.engine()
    | known_metrics.TRITON
    | known_metrics.TRITON_GPU
    | known_metrics.KUBERNETES
    | known_metrics.DCGM
)
COUNTERS = ("_total", "_bucket", "_sum", "_count", "_duration_us", "_success", "_failure")


def filled(query: Query) -> str:
    names = panels.references(query.expression)
    return panels.fill(
        query.expression, {name: "5m" if "interval" in name else name for name in names}
    )


def of_panel(panel: Panel) -> str:
    return f"{panel.dashboard}-{panel.title}"


every_panel = pytest.mark.parametrize("panel", PANELS, ids=of_panel)
every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)


def test_the_committed_files_are_what_the_code_writes() -> None:
    assert differences() == []


def test_a_changed_missing_or_left_over_file_is_named(tmp_path: Path) -> None:
    generate(tmp_path)
    (tmp_path / "overview.json").write_text("{}\n")
    (tmp_path / "model.json").unlink()
    (tmp_path / "old.json").write_text("{}\n")
    assert [text.split()[0] for text in differences(tmp_path)] == [
        "model.json",
        "old.json",
        "overview.json",
    ]


def test_the_three_dashboards_are_there() -> None:
    assert [dashboard.name for dashboard in DASHBOARDS] == ["gpu", "model", "overview"]


@pytest.mark.parametrize("name", sorted(rendered()))
def test_the_sdks_model_of_a_dashboard_loses_nothing_of_the_file(name: str) -> None:
    register_default_plugins()
    data = json.loads((FOLDER / name).read_text())
    read = Model.from_json(data)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == data


@every_dashboard
def test_ids_are_unique_and_panels_do_not_overlap(dashboard: Dashboard) -> None:
    data = json.loads((FOLDER / f"{dashboard.name}.json").read_text())
    numbers = [item["id"] for item in data["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.panels:
        assert panel.x + panel.width <= 24
        cells = {
            (x, y)
            for x in range(panel.x, panel.x + panel.width)
            for y in range(panel.y, panel.y + panel.height)
        }
        assert not cells & taken, panel.title
        taken |= cells


@every_dashboard
def test_data_source_namespace_and_release_are_variables(dashboard: Dashboard) -> None:
    data = json.loads((FOLDER / f"{dashboard.name}.json").read_text())
    names = [item["name"] for item in data["templating"]["list"]]
    assert names[:3] == ["datasource", "namespace", "release"]
    sources = {item["datasource"]["uid"] for item in data["panels"] if item["type"] != "row"}
    sources |= {
        target["datasource"]["uid"] for item in data["panels"] for target in item.get("targets", [])
    }
    assert sources == {"${datasource}"}


@pytest.mark.parametrize("name", ["overview", "model"])
def test_models_are_a_variable_without_the_streaming_companions(name: str) -> None:
    (dashboard,) = [d for d in DASHBOARDS if d.name == name]
    (variable,) = [v for v in dashboard.variables if v.name == "model"]
    assert variable.all_value == ".+"
    assert re.search(variable.regex, "llama3-8b")
    assert not re.search(variable.regex, "llama3-8b_stream")


@pytest.mark.parametrize("name", ["overview", "gpu"])
def test_a_deployment_is_told_by_the_pods_of_the_release_whatever_its_name(name: str) -> None:
    (dashboard,) = [d for d in DASHBOARDS if d.name == name]
    (variable,) = [v for v in dashboard.variables if v.name == "deployment"]
    assert variable.label == "pod"
    assert 'release="$release"' in variable.selector
    match = re.search(variable.regex, "every-thing-9-6d8f9c7b5d-x2x4z")
    assert match is not None
    assert match[1] == "every-thing-9"


def test_errors_are_those_that_the_alert_counts() -> None:
    rules = (place.ROOT / "charts/triton/files/rules/recording.yaml").read_text("utf-8")
    panels = (FOLDER / "overview.json").read_text("utf-8").replace('\\"', '"')
    found = [set(re.findall(r'reason=~?"([^"]+)"', text)) for text in (rules, panels)]
    assert found == [{"queue_.*"}] * 2


@every_panel
def test_a_panel_has_title_unit_description_and_a_query(panel: Panel) -> None:
    assert panel.title
    assert panel.unit
    assert panel.description.endswith(".")
    assert panel.queries
    assert all(query.legend for query in panel.queries)


@every_panel
def test_a_panel_ranges_over_the_rate_interval_and_nothing_fixed(panel: Panel) -> None:
    for query in panel.queries:
        assert "[$__rate_interval]" in query.expression
        assert query.expression.count("[") == query.expression.count("[$__rate_interval]")


@every_panel
def test_a_panel_asks_only_for_metrics_that_exist(panel: Panel) -> None:
    for query in panel.queries:
        assert promql.metrics(filled(query)) <= KNOWN


@every_panel
def test_every_selector_of_a_panel_is_bound_to_namespace_and_release(panel: Panel) -> None:
    for query in panel.queries:
        for name, matchers in promql.selectors(filled(query)):
            assert matchers.get("namespace") == "namespace", name
            text = " ".join(matchers.values())
            assert "release" in text or "deployment" in text, name


@every_panel
def test_counters_are_shown_as_rates_and_gauges_never(panel: Panel) -> None:
    for query in panel.queries:
        for function, argument in promql.functions(filled(query)):
            if function not in ("rate", "increase", "irate"):
                continue
            (name,) = promql.metrics(argument.split("[")[0])
            assert (
                name.endswith(COUNTERS)
                or name == "nv_energy_consumption"
                or name
                in (
                    "nv_inference_count",
                    "nv_inference_exec_count",
                )
            )
        for name in promql.metrics(filled(query)):
            if name.endswith(("_total", "_bucket")):
                assert any(
                    name in argument
                    for f, argument in promql.functions(filled(query))
                    if f in ("rate", "increase")
                )


@every_panel
def test_no_divisor_is_shifted_to_hide_a_division_by_zero(panel: Panel) -> None:
    for query in panel.queries:
        assert "clamp_min" not in query.expression
        assert "1 + " not in query.expression
        assert "or vector(" not in query.expression


def test_the_unknown_variable_of_a_query_is_an_error() -> None:
    with pytest.raises(KeyError):
        panels.fill('up{job="$job"}', {"namespace": "x"})


def test_every_panel_of_the_issue_is_on_the_overview() -> None:
    (overview,) = [d for d in DASHBOARDS if d.name == "overview"]
    titles = {panel.title for panel in overview.panels}
    assert titles >= {
        "Requests by result",
        "Request duration",
        "Time to first token",
        "Inter-token time",
        "Generated tokens",
        "In flight against slots",
        "Replicas now and wanted",
        "Restarts",
    }


def test_queries_are_many_enough_to_be_worth_the_name() -> None:
    assert len(QUERIES) > 60
