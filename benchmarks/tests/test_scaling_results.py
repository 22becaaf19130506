"""The tables of the signal and the step responses say where a run missed a goal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import results_page, step_plot

TIMES = {"mean": 8.0, "worst": 16.0, "rounds": 20}
GOOD: dict[str, Any] = {
    "scaler": "hpa",
    "sync": "15s",
    "day": "2026-11-28",
    "rounds": 20,
    "failed": 0,
    "requests": 900,
    "cores": 2,
    "ready_after_decided_seconds": [8.0] * 10 + [12.0] * 10,
    "summary": dict.fromkeys(step_plot.MARKS, TIMES),
}
SIGNAL: dict[str, Any] = {
    "day": "2026-11-28",
    "cores": 2,
    "accuracy": [
        {
            "models": 2, "rate": 10.0, "requests": 500, "failed": 0,
            "true_in_flight": 20.0, "signal": 20.5, "error": 0.025,
        }
    ],
    "linearity": {"offered": [0, 8, 32], "slope": 1.01, "r_squared": 0.999, "failed": 0},
    "reaction": {"requests": 10, "request_seconds": 60.0, "seconds": 1.3, "answered": 0},
}  # fmt: skip


def summary(field: str, **change: Any) -> dict[str, Any]:
    return {"summary": GOOD["summary"] | {field: TIMES | change}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "yes"),
        ({"rounds": 3}, "fewer than 20 steps"),
        ({"failed": 1}, "requests failed"),
        (
            {"ready_after_decided_seconds": [8.0] * 19 + [30.0]},
            "ready after decided: mean met, worst missed",
        ),
        (
            {"ready_after_decided_seconds": [30.0] * 20},
            "ready after decided: mean missed, worst missed",
        ),
        ({"ready_after_decided_seconds": []}, "no new replica was ready"),
        (summary("p95_back_seconds", rounds=18), "p95 back in 18 of 20 steps only"),
        (summary("decided_seconds", rounds=19), "decided in 19 of 20 steps only"),
        (
            summary("decided_seconds", mean=11.0, worst=20.0),
            "decided in the mean after more than 10 s; decided at worst after more than 19 s",
        ),
        ({"sync": "5s"}, "decided in the mean after more than 5 s"),
        ({"sync": "unknown"}, "no goal for a sync of unknown"),
    ],
)
def test_a_run_outside_its_goals_says_where(change: dict[str, Any], words: str) -> None:
    assert results_page.verdict({**GOOD, **change}) == words


def test_a_run_without_times_is_outside_its_goals() -> None:
    said = results_page.misses({**GOOD, "summary": {}})
    assert said == [f"{label} in 0 of 20 steps only" for label in step_plot.MARKS.values()]


def test_a_cell_says_how_many_steps_it_is_about_when_it_is_not_all() -> None:
    missed = summary("p95_back_seconds", rounds=18) | {
        "ready_after_decided_seconds": [8.0] * 14 + [22.0] * 6
    }
    text = results_page.row({**GOOD, **missed})

    assert "| 8.0 / 16.0 (18 of 20) |" in text
    assert "| 12.2 / 22.0, 14 of 20 <= 20 s |" in text


def test_a_real_model_has_rows_and_plots_of_its_own() -> None:
    simulated, real = {"scaler": "hpa", "sync": "15s"}, {"scaler": "hpa", "sync": "15s"}
    real["model"] = "smollm2-135m"
    assert results_page.name(simulated) == "hpa-sync-15s"
    assert results_page.name(real) == "smollm2-135m-hpa-sync-15s"


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("linearity", {}, "yes"),
        ("linearity", {"r_squared": 0.97}, "R² below 0.98"),
        ("linearity", {"r_squared": float("nan")}, "R² below 0.98"),
        ("linearity", {"failed": 1}, "requests failed"),
        ("reaction", {"answered": 1}, "seen only after a request had ended"),
        ("reaction", {"seconds": 61.0}, "seen only after a request had ended"),
    ],
)
def test_a_signal_outside_its_goals_says_where(
    part: str, change: dict[str, Any], words: str
) -> None:
    assert results_page.signal_verdict(SIGNAL | {part: SIGNAL[part] | change}) == words


def test_an_error_of_the_signal_above_the_goal_is_named() -> None:
    case = SIGNAL["accuracy"][0] | {"error": 0.06}
    assert (
        results_page.signal_verdict(SIGNAL | {"accuracy": [case]})
        == "10 requests/s: error above 5%"
    )


def test_what_was_measured_is_kept_and_each_run_is_a_row_with_its_plots(tmp_path: Path) -> None:
    run, kept = tmp_path / "keda", tmp_path / "kept"
    run.mkdir()
    (run / "fleet.json").write_text(json.dumps({**GOOD, "scaler": "keda"}))
    (run / "fleet.png").write_bytes(b"all")
    (run / "step.png").write_bytes(b"one")
    (tmp_path / "signal.json").write_text(json.dumps(SIGNAL))

    results_page.keep(run, kept)
    results_page.keep(tmp_path / "signal.json", kept)
    text = results_page.page(kept)

    names = ["keda-sync-15s-step.png", "keda-sync-15s.json", "keda-sync-15s.png", "signal.json"]
    assert sorted(path.name for path in kept.iterdir()) == names
    assert "| simulated | keda, 15s | 2026-11-28 | 20 | 8.0 / 16.0 |" in text
    assert "| 10 | 2 | 500 | 20.00 | 20.50 | 2.50% |" in text
    assert "slope 1.010, R² 0.9990" in text


def test_a_folder_without_a_result_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(results_page.ResultsError, match=r"run benchmarks\.scaling\.fleet first"):
        results_page.keep(tmp_path)


def test_the_committed_page_is_what_the_kept_files_say() -> None:
    assert results_page.TABLE.read_text(encoding="utf-8") == results_page.page()
