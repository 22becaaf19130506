"""The signal of the autoscaler against the truth: a real Triton, a real Prometheus, no cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.scaling import signal_accuracy as accuracy
from benchmarks.scaling.lab import Lab, running_lab
from benchmarks.scaling.query import RenderError
from dashboards import panels, promql
from embedded_triton.fetch import EmbeddedError, ensure_tree
from lib import offered_load
from lib.prometheus import binary
from tools import wait

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    program = binary()
    if program is None:
        pytest.skip("needs Prometheus: python3 -m cluster.binaries prometheus")
    try:
        accuracy.question(["any"])
    except RenderError as error:
        pytest.skip(f"needs helm: {error}")
    try:
        ensure_tree()
    except EmbeddedError as error:
        pytest.skip(f"needs a real Triton: {error}")
    models = accuracy.simulated(accuracy.CASES)
    with running_lab(program, tmp_path_factory.mktemp("lab"), models) as made:
        yield made


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] if case.rate <= 10 else [])
        for case in accuracy.CASES
    ],
    ids=lambda case: f"{case.rate:g}-a-second-over-{case.models}",
)
def test_the_signal_is_within_5_percent_of_the_true_number_in_flight(
    pair: Lab, case: accuracy.Case
) -> None:
    found = accuracy.measure(pair, case)
    assert found.failed == 0
    assert found.requests >= case.rate * case.measured_seconds * 0.5
    assert found.error <= 0.05, found


def test_the_signal_is_linear_in_the_offered_concurrency_up_to_four_times_the_slots(
    pair: Lab,
) -> None:
    found = accuracy.measure_linearity(pair, "levels", seconds=5)
    assert found.failed == 0
    assert max(found.offered) == 4 * accuracy.LEVEL_SLOTS
    assert found.r_squared >= 0.98, found
    assert found.slope == pytest.approx(1.0, abs=0.05), found


def test_the_signal_shows_ten_requests_while_the_first_of_60_seconds_still_runs(pair: Lab) -> None:
    found = accuracy.measure_reaction(pair, "long")
    assert found.requests == 10
    assert found.answered == 0
    assert found.seconds < found.request_seconds == 60


def test_every_query_over_engine_and_triton_metrics_has_data_from_a_real_triton(pair: Lab) -> None:
    with offered_load.Load(accuracy.targets(pair, ["levels"], max_tokens=3)) as driver:
        driver.clients(4)
        # A rate needs two scrapes.
        found = wait.until(lambda: metrics_of_panels(pair), seconds=60)
    assert driver.record.failed == []
    assert len(found) > 20


def metrics_of_panels(pair: Lab) -> set[str]:
    """Return the metrics of the engine and of Triton that panels show; all queries have data."""
    found = set()
    for dashboard in panels.load_all():
        chosen = {"deployment": "none", "model": "levels"}
        values = panels.choose(dashboard, pair.prometheus, chosen, interval="10s")
        for panel in dashboard.panels:
            for query in panel.queries:
                expression = panels.fill(query.expression, values)
                names = promql.metrics(expression)
                if all(name.startswith(("triton_hf_", "nv_inf", "nv_cpu")) for name in names):
                    answer = pair.prometheus.query(expression)
                    assert answer, f"{panel.title}: {expression}"
                    found |= names
    return found
