"""What the rendered signals answer: promtool evaluates the text that KEDA and the adapter ask."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, program
from chart.signals import BY_NAMESPACE, adapter_rule, keda_query, scaled

pytestmark = pytest.mark.chart
TARGET = 25
PODS = tuple(f"rel-triton-5b6454d5f7-aaaa{letter}" for letter in "abcd")
STEP = "15s"
# promtool writes a series as its first value, what is added at each step, and how often.
IDLE = "0x60"

Series = Mapping[str, str]


def series(name: str, pod: str, values: str, **labels: str) -> Series:
    """Return a series of one pod as promtool reads it."""
    everything = {"namespace": "models", "pod": pod, **labels}
    inside = ",".join(f'{key}="{value}"' for key, value in everything.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


def up(*values: str) -> list[Series]:
    """Return whether each of the first pods could be scraped."""
    return [series("up", pod, each, job="triton") for pod, each in zip(PODS, values, strict=False)]


def queue(pod: str, model: str, *, seconds: str, count: str) -> list[Series]:
    """Return the sum of the waits of one model in a pod, and the number of requests."""
    return [
        series("triton_hf_queue_seconds_sum", pod, seconds, model=model),
        series("triton_hf_queue_seconds_count", pod, count, model=model),
    ]


def running(pod: str, values: str, model: str = "m") -> list[Series]:
    """Return the requests that run in a pod; none waits."""
    return [
        series("triton_hf_requests_running", pod, values, model=model),
        series("triton_hf_requests_waiting", pod, IDLE, model=model),
    ]


def asked_by_keda(signal: str, **more: Any) -> str:
    return keda_query(scaled("keda", signal=signal, **more))


def asked_by_the_adapter(signal: str) -> str:
    """Return the adapter's query with its holes filled, grouped by pod alone."""
    query = adapter_rule(scaled("hpa", signal=signal))["metricsQuery"]
    return str(query.replace(BY_NAMESPACE, 'namespace="models"').replace("<<.GroupBy>>", "pod"))


def check(
    folder: Path, query: str, given: Sequence[Series], answers: Mapping[str, Mapping[str, float]]
) -> None:
    """Evaluate a query at some times over some series.

    Args:
        folder: where promtool's file goes.
        query: the text that was rendered.
        given: the series.
        answers: by time, the value by pod; the pod "" is a sum over pods.
    """
    tests = [
        {
            "expr": f"round({query}, 0.001)",
            "eval_time": time,
            "exp_samples": [
                {"labels": f'{{pod="{pod}"}}' if pod else "{}", "value": value}
                for pod, value in found.items()
            ],
        }
        for time, found in answers.items()
    ]
    case = {"interval": STEP, "input_series": list(given), "promql_expr_test": tests}
    file = folder / "signal.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [], "evaluation_interval": STEP, "tests": [case]})
    )
    words = [program("promtool"), "test", "rules", str(file)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "file", sorted((CHART / "files" / "signals").glob("*.promql")), ids=lambda file: file.stem
)
def test_a_query_file_is_promql_as_it_stands(tmp_path: Path, file: Path) -> None:
    rule = {"record": "signal", "expr": file.read_text()}
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "signals", "rules": [rule]}]}))
    words = [program("promtool"), "check", "rules", str(rules)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def gone(steps: int, value: str) -> str:
    """Return a value for some steps, then the mark that the target could not be scraped."""
    return f"{value}x{steps} stale"


@pytest.mark.parametrize("signal", ["inflight", "queueTime"])
def test_an_idle_release_is_zero(tmp_path: Path, signal: str) -> None:
    given = [*up("1x60", "1x60")]
    for pod in PODS[:2]:
        given += running(pod, IDLE) + queue(pod, "m", seconds="7x60", count="9x60")
    check(tmp_path, asked_by_keda(signal, target=TARGET), given, {"10m": {"": 0}})
    check(tmp_path, asked_by_the_adapter(signal), given, {"10m": {PODS[0]: 0, PODS[1]: 0}})


def test_pending_requests_are_counted_over_the_models_of_each_pod(tmp_path: Path) -> None:
    name = "nv_inference_pending_request_count"
    given = [
        *up("1x60", "1x60"),
        series(name, PODS[0], "3x60", model="a", version="1"),
        series(name, PODS[0], "4x60", model="b", version="1"),
        series(name, PODS[1], IDLE, model="a", version="1"),
    ]
    check(tmp_path, asked_by_keda("pending", target=5), given, {"10m": {"": 7}})
    check(tmp_path, asked_by_the_adapter("pending"), given, {"10m": {PODS[0]: 7, PODS[1]: 0}})


def test_one_request_in_two_minutes_is_its_own_wait(tmp_path: Path) -> None:
    """It waited 0.5 s; a mean over time instead of over requests would say 0.004 s."""
    given = [
        *up("1x60"),
        *running(PODS[0], "1x60"),
        *queue(PODS[0], "m", seconds="0x36 0.5x23", count="0x36 1x23"),
    ]
    check(tmp_path, asked_by_the_adapter("queueTime"), given, {"10m": {PODS[0]: 0.5}})
    check(tmp_path, asked_by_keda("queueTime", target=1), given, {"10m": {"": 0.5}})


def test_a_busy_pod_that_admits_nobody_says_nothing_and_counts_as_at_its_target(
    tmp_path: Path,
) -> None:
    """It is neither idle nor quick: the HPA takes it for missing, and so does KEDA's query."""
    given = [
        *up("1x60", "1x60"),
        *running(PODS[0], "8x60"),
        *queue(PODS[0], "m", seconds="9x60", count="3x60"),
        *running(PODS[1], "8x60"),
        *queue(PODS[1], "m", seconds="0+1.5x60", count="0+5x60"),
    ]
    check(tmp_path, asked_by_the_adapter("queueTime"), given, {"10m": {PODS[1]: 0.3}})
    check(tmp_path, asked_by_keda("queueTime", target=0.5), given, {"10m": {"": 0.8}})


def test_the_wait_of_two_models_is_weighted_by_their_requests(tmp_path: Path) -> None:
    """90 requests that waited 0.1 s and 10 that waited 2 s waited 0.29 s in the mean."""
    given = [
        *up("1x60"),
        *running(PODS[0], "4x60", "quick"),
        *running(PODS[0], "4x60", "slow"),
        *queue(PODS[0], "quick", seconds="0+9x60", count="0+90x60"),
        *queue(PODS[0], "slow", seconds="0+20x60", count="0+10x60"),
    ]
    check(tmp_path, asked_by_the_adapter("queueTime"), given, {"10m": {PODS[0]: 0.29}})
    check(tmp_path, asked_by_keda("queueTime", target=0.5), given, {"10m": {"": 0.29}})


def test_keda_sees_the_load_of_all_pods(tmp_path: Path) -> None:
    given = [*up("1x60", "1x60"), *running(PODS[0], "40x60"), *running(PODS[1], "35x60")]
    check(tmp_path, asked_by_keda("inflight", target=TARGET), given, {"10m": {"": 75}})


def test_one_of_four_pods_lost_to_prometheus_is_no_reason_to_scale_in(tmp_path: Path) -> None:
    """The lost pod counts as one at its target; four pods stay four."""
    given = up("1x60", "1x60", "1x60", "1x20 0x40")
    for pod in PODS[:3]:
        given += running(pod, "24x60")
    given += [
        series("triton_hf_requests_running", PODS[3], gone(20, "24"), model="m"),
        series("triton_hf_requests_waiting", PODS[3], gone(20, "0"), model="m"),
    ]
    query = asked_by_keda("inflight", target=TARGET)
    check(tmp_path, query, given, {"4m": {"": 96}, "8m": {"": 97}})


def test_a_lost_pod_among_idle_ones_does_not_hold_them(tmp_path: Path) -> None:
    given = up("1x60", "1x60", "1x60", "0x60")
    for pod in PODS[:3]:
        given += running(pod, IDLE)
    check(tmp_path, asked_by_keda("inflight", target=TARGET), given, {"10m": {"": TARGET}})


def test_pods_that_still_load_their_models_are_no_reason_for_more(tmp_path: Path) -> None:
    """One pod has the work of four, three more are on their way: four are wanted, not seven."""
    given = [*up("1x60", "0x60", "0x60", "0x60"), *running(PODS[0], "100x60")]
    check(tmp_path, asked_by_keda("inflight", target=TARGET), given, {"10m": {"": 100}})


def test_a_pod_that_has_just_ended_is_not_held(tmp_path: Path) -> None:
    given = [*up("1x60", "1x38 0x22"), *running(PODS[0], "20x60")]
    check(tmp_path, asked_by_keda("inflight", target=TARGET), given, {"10m": {"": 20}})


def test_all_pods_lost_is_no_answer(tmp_path: Path) -> None:
    """KEDA takes no answer for an error, and freezes the number of pods."""
    given = up("0x60", "0x60")
    check(tmp_path, asked_by_keda("inflight", target=TARGET), given, {"10m": {}})


def test_without_the_series_up_the_sum_is_what_it_was(tmp_path: Path) -> None:
    given = [*running(PODS[0], "40x60"), *running(PODS[1], "35x60")]
    check(tmp_path, asked_by_keda("inflight", target=TARGET), given, {"10m": {"": 75}})
