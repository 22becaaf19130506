"""The table of the step responses says where a run missed a goal."""

from __future__ import annotations

from typing import Any

import pytest
from scaling import results

GOOD = {
    "scaler": "hpa",
    "sync": "15s",
    "rounds": 20,
    "failed": 0,
    "requests": 900,
    "cores": 2,
    "ready_after_decided_seconds": [8.0, 12.0],
    "summary": {"decided_seconds": {"mean": 8.0, "worst": 16.0, "rounds": 20}},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "yes"),
        ({"failed": 1}, "requests failed"),
        ({"ready_after_decided_seconds": [30.0]}, "ready more than 20 s after the decision"),
        ({"summary": {}}, "not every step was answered"),
        (
            {"summary": {"decided_seconds": {"mean": 8.0, "worst": 16.0, "rounds": 19}}},
            "not every step was answered",
        ),
        (
            {"summary": {"decided_seconds": {"mean": 11.0, "worst": 20.0, "rounds": 20}}},
            "decided in the mean after more than 10 s, decided at worst after more than 19 s",
        ),
        ({"sync": "5s"}, "decided in the mean after more than 5 s"),
    ],
)
def test_a_run_outside_its_goals_says_where(change: dict[str, Any], words: str) -> None:
    assert results.verdict({**GOOD, **change}) == words


def test_each_run_is_a_row_with_its_plot() -> None:
    text = results.table([GOOD, {**GOOD, "scaler": "keda"}])

    assert "| hpa, 15s | 20 |" in text
    assert "| 8.0 / 16.0 |" in text
    assert "![keda-sync-15s](results/keda-sync-15s.png)" in text


def test_a_real_model_has_rows_and_plots_of_its_own() -> None:
    simulated, real = {"scaler": "hpa", "sync": "15s"}, {"scaler": "hpa", "sync": "15s"}
    real["model"] = "smollm2-135m"
    assert results.name(simulated) == "hpa-sync-15s"
    assert results.name(real) == "smollm2-135m-hpa-sync-15s"
