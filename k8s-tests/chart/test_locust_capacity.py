"""charts/locust: a search for the capacity is one pod that makes its load itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chart.rendered_runs import SEARCH, container, locust, own_services
from tools.place import ROOT

pytestmark = pytest.mark.chart


def test_a_search_is_one_pod_that_makes_its_load_itself() -> None:
    manifest = locust(file=SEARCH)
    (only,) = manifest.all("Job")
    assert only["metadata"]["name"] == "rel-locust-run-1-master"
    assert own_services(manifest) == []
    (policy,) = manifest.all("NetworkPolicy")
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert opened == {"metrics"}
    found = container(manifest, "master")
    assert found["command"] == ["python3", "-m", "triton_load.capacity"]
    assert found["resources"] == container(locust(), "worker")["resources"]
    assert [port["name"] for port in found["ports"]] == ["metrics"]
    silent = locust({"metrics": {"enabled": False}}, file=SEARCH)
    assert "ports" not in container(silent, "master")
    assert "ingress" not in silent.one("NetworkPolicy")["spec"]


def test_a_search_takes_every_word_that_the_chart_gives_it(tmp_path: Path) -> None:
    words = container(locust({"capacity": {"forUsers": 50}}, file=SEARCH), "master")["args"]
    goals = tmp_path / "goals.yaml"
    goals.write_text("error ratio: 0\n")
    here = {
        "--out": tmp_path / "out",
        "--objectives": goals,
        "--host": "http://127.0.0.1:9",
        "--wait": 0,
        "--exporter-port": 0,
    }
    assert set(here) <= {word.split("=")[0] for word in words}
    names = [word.split("=")[0] for word in words]
    words = [f"{n}={here[n]}" if n in here else w for n, w in zip(names, words, strict=True)]
    done = subprocess.run(
        [sys.executable, "-m", "triton_load.capacity", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "load_testing")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot reach http://127.0.0.1:9")
