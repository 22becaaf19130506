"""Monitoring: pods are scraped one way; rules are narrowed to the release, and do what they say."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, Manifest, default_values, program, render
from cluster import addons
from tools.place import ROOT
from triton_hf.metrics import FAMILIES

pytestmark = pytest.mark.chart
RULES = sorted((CHART / "files" / "rules").glob("*.yaml"))
RULE_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
# It always fires, whatever is scraped.
WATCHDOG = "TritonWatchdog"
ON = {"metrics": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}}


def scraped(kind: str) -> Manifest:
    return render({"metrics": {"scrape": {"kind": kind, "labels": {"team": "ml"}}}})


@pytest.mark.parametrize(
    ("kind", "endpoints"),
    [("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")],
)
def test_a_monitor_scrapes_the_metrics_port_and_names_the_release(
    kind: str, endpoints: str
) -> None:
    manifest = scraped(kind[0].lower() + kind[1:])
    monitor = manifest.one(kind)
    (endpoint,) = monitor["spec"][endpoints]
    assert endpoint["port"] == "metrics"
    assert endpoint["interval"] == "15s"
    assert [relabel["targetLabel"] for relabel in endpoint["relabelings"]] == ["release"]
    assert monitor["metadata"]["labels"]["team"] == "ml"


@pytest.mark.parametrize("kind", ["none", "annotations", "podMonitor", "serviceMonitor"])
def test_a_pod_is_scraped_in_one_way_only(kind: str) -> None:
    manifest = scraped(kind)
    template = manifest.one("Deployment")["spec"]["template"]["metadata"]
    found = {o["kind"].lower() for o in manifest.objects if o["kind"].endswith("Monitor")}
    if "prometheus.io/scrape" in template["annotations"]:
        found.add("annotations")
        port = {port["name"]: port["containerPort"] for port in manifest.server["ports"]}["metrics"]
        assert template["annotations"]["prometheus.io/port"] == str(port)
    assert found == ({kind.lower()} - {"none"})


def test_annotations_come_with_the_label_by_which_the_series_name_their_release() -> None:
    def label(kind: str, **more: Any) -> str | None:
        template = render({"metrics": {"scrape": {"kind": kind}}, **more}).one("Deployment")
        return template["spec"]["template"]["metadata"]["labels"].get("release")

    assert label("annotations") == "rel"
    assert label("podMonitor") is None
    assert label("annotations", podLabels={"release": "mine"}) == "mine"


def test_the_embedded_prometheus_scrapes_annotated_pods_as_the_readme_says() -> None:
    (written,) = re.findall(
        r"```yaml\n(- job_name: .+?)```", (CHART / "README.md").read_text(), re.S
    )
    secret = next(
        found
        for found in yaml.safe_load_all((addons.MANIFESTS / "monitoring.yaml").read_text())
        if found["kind"] == "Secret"
    )
    configured = secret["stringData"]["scrape.yaml"].replace("$$", "$")
    assert yaml.safe_load(configured) == yaml.safe_load(written)


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


def test_every_rule_of_the_files_is_rendered_for_this_release_only() -> None:
    rendered = [
        rule
        for group in render(ON).one("PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    ]
    assert len(rendered) == len(rules()) >= 18
    for rule in rendered:
        for selector in re.findall(r"[a-z_:]+(\{[^}]*\})", rule["expr"]):
            assert 'namespace="models"' in selector, rule["expr"]
            assert '=~".+"' not in selector, rule["expr"]
            assert "rel" in selector, rule["expr"]


def test_every_rule_but_the_watchdog_names_its_release() -> None:
    for rule in rules():
        if rule.get("alert") == WATCHDOG:
            continue
        assert re.search(r"\w\{[^}]*=~", rule["expr"]), rule["expr"]
        bare = re.sub(r"by \([^)]*\)|\{[^}]*\}|\[[^]]*\]", "", rule["expr"])
        named = set(re.findall(r"(?<![\w:])(?:triton_hf|kube|kubelet|nv)_\w+", bare))
        with_selector = set(re.findall(r"\b((?:triton_hf|kube|kubelet|nv)_\w+)\{", rule["expr"]))
        assert named == with_selector, rule["expr"]


def test_every_metric_of_the_engine_in_a_rule_exists() -> None:
    known = {family.name for family in FAMILIES}
    text = "".join(rule["expr"] for rule in rules())
    used = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in re.findall(r"(?<!:)\btriton_hf_\w+(?=\{)", text)
    }
    assert used <= known
    assert used


def test_every_alert_says_how_bad_what_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    for alert in alerts:
        severity = ("none",) if alert["alert"] == WATCHDOG else ("critical", "warning")
        assert alert["labels"]["severity"] in severity
        assert {"summary", "description"} <= set(alert["annotations"])


def rendered_rules(**chosen: Any) -> list[dict[str, Any]]:
    manifest = render({"metrics": {"rules": {"enabled": True, **chosen}}})
    groups = manifest.one("PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_default_thresholds_are_those_that_promtool_tests() -> None:
    scoped = re.compile(r"namespace=\"models\",?|[a-z_]+=~?\"(rel|\.)[^\"]*\",?")
    for file, made in zip(rules(), rendered_rules(), strict=True):
        assert scoped.sub("", made["expr"]).split() == scoped.sub("", file["expr"]).split()
        assert {**made, "expr": ""} == {**file, "expr": ""}


def test_groups_keep_their_name_and_interval() -> None:
    made = render(ON).one("PrometheusRule")["spec"]["groups"]
    written = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    assert [{**group, "rules": []} for group in made] == [{**g, "rules": []} for g in written]


THRESHOLDS = default_values()["metrics"]["rules"]["thresholds"]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_threshold_changes_the_end_of_one_alert(name: str) -> None:
    value = 77 if isinstance(THRESHOLDS[name], int) else 0.7
    before, after = rendered_rules(), rendered_rules(thresholds={name: value})
    ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert {**old, "expr": ""} == {**new, "expr": ""}
    assert old["expr"].rstrip().endswith(f" {THRESHOLDS[name]}")
    assert new["expr"] == old["expr"].rstrip().removesuffix(str(THRESHOLDS[name])) + str(value)


def test_a_single_alert_can_be_left_out() -> None:
    before, after = rendered_rules(), rendered_rules(disabled=["TritonLatencyHigh"])
    assert [rule for rule in before if rule not in after] == [
        rule for rule in before if rule.get("alert") == "TritonLatencyHigh"
    ]


def test_every_alert_has_a_page_and_names_it_when_it_is_told_where() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    alerts = [rule for rule in rendered_rules() if "alert" in rule]
    assert headings == [alert["alert"] for alert in alerts]
    assert not any("runbook_url" in alert["annotations"] for alert in alerts)
    for rule in rendered_rules(runbookUrl="https://example.com/alerts"):
        if "alert" in rule:
            wanted = f"https://example.com/alerts#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook_url"] == wanted


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.stem)
def test_rules_are_valid_for_prometheus(file: Path) -> None:
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_recorded_series_is_read_by_an_alert() -> None:
    read = " ".join(rule["expr"] for rule in rules() if "alert" in rule)
    assert [rule["record"] for rule in rules() if rule.get("record", "") not in read] == []


def test_every_alert_is_tested_firing_and_all_but_the_watchdog_not_firing() -> None:
    firing: set[str] = set()
    quiet: set[str] = set()
    for file in RULE_TESTS:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case.get("alert_rule_test", []):
                (firing if check.get("exp_alerts") else quiet).add(check["alertname"])
    wanted = {rule["alert"] for rule in rules() if "alert" in rule}
    assert firing == wanted
    assert quiet == wanted - {WATCHDOG}


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_unit_tests_say(file: Path) -> None:
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_dashboard_becomes_a_config_map_that_the_sidecar_finds() -> None:
    made = [
        found
        for found in render(ON).all("ConfigMap")
        if found["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    assert len(made) == len(DASHBOARDS) > 0
    for found in made:
        ((name, text),) = found["data"].items()
        # Grafana's sidecar writes the keys of all charts into one folder.
        assert name.startswith("triton-")
        assert json.loads(text) == json.loads(
            (CHART / "files" / "dashboards" / name.removeprefix("triton-")).read_text()
        )


def test_rules_and_dashboards_are_off_by_default() -> None:
    assert not {o["kind"] for o in render().objects} & {"PrometheusRule", "ConfigMap"}
