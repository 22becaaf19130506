"""The simulated fleet: its pages, its arithmetic, and a small one that the chart really scales."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import pytest

from benchmarks.scaling import controlplane, metrics_pages, simulation, simulation_report
from cluster import binaries

PAGE = """# TYPE triton_hf_requests_running gauge
triton_hf_requests_running{model="a",version="1"} 7
triton_hf_requests_running{model="b",version="1"} 7
# TYPE triton_hf_requests_waiting gauge
triton_hf_requests_waiting{model="a",version="1"} 7
nv_other{model="a"} 7
"""


def test_a_page_carries_the_share_of_one_pod_and_the_rest_as_it_was() -> None:
    text = metrics_pages.render(PAGE, 3, 2)
    assert simulation.samples(text, "triton_hf_requests_running") == {
        'model="a",version="1"': 3,
        'model="b",version="1"': 0,
    }
    assert simulation.samples(text, "triton_hf_requests_waiting") == {'model="a",version="1"': 2}
    assert simulation.samples(text, "nv_other") == {'model="a"': 7}


def test_a_page_without_an_engine_is_refused() -> None:
    with pytest.raises(metrics_pages.NoSignalError, match="triton_hf_requests_waiting"):
        metrics_pages.render('triton_hf_requests_running{model="a"} 1\n', 1, 0)


@pytest.mark.parametrize("total", [0, 1, 23, 100, 1000])
def test_all_shares_together_are_the_demand(total: int) -> None:
    pods = [f"pod-{number}" for number in range(7)]
    demand = metrics_pages.Demand(slots=32, in_flight=total, serving=lambda: pods)
    shares = [demand.share(name) for name in pods]
    assert sum(running + waiting for running, waiting in shares) == total
    assert max(running for running, _ in shares) <= 32
    sums = [running + waiting for running, waiting in shares]
    assert max(sums) - min(sums) <= 1
    assert demand.share("a pod that is not ready") == (0, 0)


def test_a_histogram_is_what_came_after_the_first_look() -> None:
    before = 'x_bucket{a="1",le="0.1"} 1\nx_bucket{a="1",le="+Inf"} 1\nx_sum{a="1"} 0.05\n'
    before += 'x_count{a="1"} 1\n'
    after = 'x_bucket{a="1",le="0.1"} 2\nx_bucket{a="1",le="0.5"} 4\nx_bucket{a="1",le="+Inf"} 4\n'
    after += 'x_sum{a="1"} 0.95\nx_count{a="1"} 4\n'
    found = simulation.histogram(after, "x").since(simulation.histogram(before, "x"))
    assert found.count == 3
    assert found.mean == pytest.approx(0.3)
    assert found.below == 0.5


@pytest.mark.parametrize(
    ("policies", "start", "periods"),
    [
        ([{"type": "Pods", "value": 1, "periodSeconds": 60}], 4, 2),
        ([{"type": "Percent", "value": 50, "periodSeconds": 60}], 8, 2),
        (
            [
                {"type": "Pods", "value": 1, "periodSeconds": 60},
                {"type": "Percent", "value": 10, "periodSeconds": 60},
            ],
            30,
            # 27 24 21 18 16 14 12 10, then one by one: 17 changes, the first at once.
            16,
        ),
    ],
)
def test_scale_in_takes_as_long_as_its_policies_say(
    policies: list[dict[str, object]], start: int, periods: int
) -> None:
    behavior = {"stabilizationWindowSeconds": 300, "policies": policies}
    found = simulation_report.scale_in_seconds(behavior, start)
    assert found == 300 + 60 * periods


@pytest.mark.parametrize(
    ("value", "replicas", "away"), [("5%", 2, 1), ("5%", 39, 1), ("5%", 400, 20), (3, 10, 3)]
)
def test_a_percentage_of_pods_is_rounded_down_and_never_to_none(
    value: int | str, replicas: int, away: int
) -> None:
    assert simulation_report.missing_pods(value, replicas) == away


@pytest.mark.slow
def test_the_chart_scales_a_simulated_fleet(tmp_path: Path) -> None:
    """Ten nodes, twenty replicas: the autoscaler follows, and no query names a pod."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl for the certificates of the control plane")
    try:
        binaries.ensure(controlplane.PROGRAMS)
    except binaries.MissingError as error:
        pytest.skip(str(error))
    options = argparse.Namespace(
        nodes=10, replicas=[4, 20], sync=15, hold=35.0, patience=300.0, rollouts=[]
    )
    found = simulation.run(tmp_path, options)
    small, large = found["costs"]
    assert (small["wanted"], large["replicas"]) == (4, 20)
    assert small["query_characters"] == large["query_characters"]
    assert large["listed_query_characters"] > small["listed_query_characters"] + 16 * 20
    assert large["reconciles"] >= 2
    assert 0 < large["reconcile_seconds"] < found["sync_seconds"]
    assert "nvidia.com/gpu" in found["unplaced_message"]
    text = simulation_report.page(json.loads(json.dumps(found)))
    assert "nan" not in text
    assert not math.isnan(large["metric_seconds"])
    simulation_report.draw(tmp_path / "plot.png", found)
    assert (tmp_path / "plot.png").stat().st_size > 10_000
