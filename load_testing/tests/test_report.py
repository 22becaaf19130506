"""Reports show what the record holds: one page without a network, 80 columns in a terminal."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from triton_load import record as records
from triton_load import report
from triton_load.record import Distribution, ErrorClass, Objective, Record, Second, Verdict
from triton_load.report import page, summary, svg
from triton_load.report.reading import view_of
from triton_load.report.view import rebin


def times(name: str, *values: float) -> Distribution:
    found = Distribution(name)
    for value in values:
        found.add(value)
    return found


def second(at: int, **changes: Any) -> Second:
    good = {"users": 4, "started": 2, "passed": 2, "in_flight": 4, "tokens": 60, "replicas": 1}
    quantiles = {"50": 0.5, "95": 0.9, "99": 1.1}
    return Second(at=at, latency=quantiles, ttft=quantiles, **{**good, **changes})


def finished(**changes: Any) -> Record:
    """Return the record of a run of 60 s whose TTFT is 0.1 s, but 0.4 s for one in ten."""
    plain = {
        "name": "nightly",
        "started": 1_790_000_000.0,
        "config": {"model": "simulated", "client": "stream", "users": 4, "host": "http://triton"},
        "totals": records.Totals(
            requests=120,
            failed=0,
            unfinished=0,
            duration=60.0,
            requests_per_second=2.0,
            output_tokens_per_second=60.0,
            goodput=1.8,
        ),
        "distributions": {
            records.LATENCY: times(records.LATENCY, *([1.0] * 108 + [2.0] * 12)),
            records.TTFT: times(records.TTFT, *([0.1] * 108 + [0.4] * 12)),
            records.INTER_TOKEN: times(records.INTER_TOKEN, *([0.02] * 3600)),
            records.OUTPUT_TOKENS: times(records.OUTPUT_TOKENS, *([30] * 120)),
        },
        "series": tuple(second(at) for at in range(60)),
        "errors": (),
        "workers": records.Workers(
            expected=2, seen=2, lost=0, cpu_percent=31.0, lag_seconds=0.0008
        ),
        "objectives": (
            Objective(name="p95 ttft", bound="<= 250 ms", limit=0.25, measured=0.4, met=False),
        ),
        "verdict": Verdict(result="fail", reasons=("p95 ttft was 400 ms.",), exit_code=1),
    }
    return Record(**{**plain, **changes})


NOTHING = finished(
    totals=records.Totals(
        requests=0,
        failed=0,
        unfinished=3,
        duration=0.0,
        requests_per_second=0.0,
        output_tokens_per_second=0.0,
        goodput=0.0,
    ),
    distributions={records.LATENCY: Distribution(records.LATENCY)},
    series=(),
    objectives=(
        Objective(name="p95 ttft", bound="<= 250 ms", limit=0.25, measured=None, met=False),
    ),
    verdict=Verdict(result="invalid", reasons=("no request ended.",), exit_code=3),
)
HOSTILE = finished(
    name="<b>" * 60,
    config={"model": "m" * 200, "client": "</style><script>alert(1)</script>", "users": 4},
    errors=(ErrorClass(name="http 500", count=3, example='<img src="http://x/">\n' * 30),),
    verdict=Verdict(result="invalid", reasons=("<i>" + "word " * 80,), exit_code=3),
)
RUNS = {"a run": finished(), "nothing": NOTHING, "hostile": HOSTILE}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def drawings(text: str) -> list[ElementTree.Element]:
    found = re.findall(r"<svg.*?</svg>", text, re.S)
    return [ElementTree.fromstring(drawing) for drawing in found]  # noqa: S314


@every_run
def test_the_page_needs_nothing_from_elsewhere(run: Record) -> None:
    text = page.render(view_of(run))
    assert not re.search(r"<(script|img|link|iframe)|@import|url\(", text)


@every_run
def test_every_plot_is_well_formed(run: Record) -> None:
    for drawing in drawings(page.render(view_of(run))):
        assert drawing.attrib["aria-label"]
        assert "nan" not in ElementTree.tostring(drawing, encoding="unicode").lower()


@every_run
def test_the_summary_fits_80_columns_and_ends_with_the_verdict(run: Record) -> None:
    text = summary.render(view_of(run))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert f"\nverdict: {run.verdict.result}\n" in text


def test_the_page_plots_all_that_the_record_holds() -> None:
    text = page.render(view_of(finished()))
    titles = [drawing.attrib["aria-label"] for drawing in drawings(text)]
    assert titles == [
        "Latency over time",
        "Time to first token over time",
        "Requests per second",
        "Output tokens per second",
        "Users and requests in flight",
        "Server replicas",
        "Latency",
        "Time to first token",
        "Inter-token time",
    ]


def test_what_was_not_measured_is_no_empty_plot() -> None:
    series = tuple(
        dataclasses.replace(second(at), ttft={}, tokens=0, replicas=None) for at in range(5)
    )
    run = finished(series=series, distributions={records.LATENCY: times(records.LATENCY, 1.0)})
    text = page.render(view_of(run))
    assert "Server replicas" not in text
    assert "first token" not in text


def test_errors_are_plotted_and_named_with_their_example() -> None:
    series = tuple(second(at, failed=at % 2) for at in range(10))
    errors = (ErrorClass(name="timeout", count=5, example="no token for 60 s"),)
    text = page.render(view_of(finished(series=series, errors=errors)))
    assert "Errors per second" in text
    assert "<td>timeout</td><td>5</td><td>no token for 60 s</td>" in text


def test_numbers_are_those_of_the_record() -> None:
    view = view_of(finished())
    ttft = next(d for d in view.distributions if d.name == "ttft")
    assert ttft.count == 120
    assert ttft.percentiles[50.0] == pytest.approx(100, rel=1e-3)
    assert ttft.percentiles[95.0] == pytest.approx(400, rel=1e-3)
    assert sum(count for _, _, count in ttft.bins) == 120
    assert view.figures["goodput per second"] == "1.8"
    assert view.figures["output tokens (p50)"] == "30"
    (objective,) = view.objectives
    assert (objective.measured, objective.limit) == ("400 ms", "<= 250 ms")
    assert view.times["replicas"].values["ready"] == [1.0] * 60


def test_an_objective_is_drawn_into_the_plots_of_its_time() -> None:
    text = page.render(view_of(finished()))
    holders = [
        d.attrib["aria-label"] for d in drawings(text) if "p95 ttft" in "".join(d.itertext())
    ]
    assert holders == ["Time to first token over time", "Time to first token"]


def test_both_files_are_written_and_nothing_half(tmp_path: Path) -> None:
    text = report.write(finished(), tmp_path / "new")
    assert {f.name for f in (tmp_path / "new").iterdir()} == {"report.html", "summary.txt"}
    assert (tmp_path / "new" / "summary.txt").read_text() == text
    report.write(HOSTILE, tmp_path / "new")
    assert (tmp_path / "new" / "summary.txt").read_text() != text


# The drawing.


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.0003), (0, 87), (0, 1e9), (3, 3.2), (0, 0)], ids=str
)
def test_ticks_are_few_and_cover_the_values(low: float, high: float) -> None:
    ticks = svg.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low
    assert ticks[-1] >= high


def test_there_are_no_parts_of_a_replica() -> None:
    assert svg.nice_ticks(0, 1, whole=True) == [0, 1]
    assert svg.nice_ticks(0, 7, whole=True) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("seconds", [1, 59, 600, 86_400, 900_000])
def test_the_axis_of_time_is_readable_at_every_length(seconds: float) -> None:
    ticks = svg.time_ticks(seconds)
    assert 1 <= len(ticks) <= 11
    assert ticks[-1] <= seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (33.31, "33.3"), (999.6, "1000"), (1240, "1.24k"), (5e6, "5M")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert svg.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8, "800 µs"), (0, "0 ms"), (134.2, "134 ms"), (1430, "1.43 s"), (90_000, "1.5 min")],
)
def test_times_have_the_unit_that_people_use(value: float, text: str) -> None:
    assert svg.milliseconds(value) == text


def test_a_gap_in_the_data_is_a_gap_in_the_line() -> None:
    line = svg.Series(name="x", values=[1.0, None, 2.0, None, 3.0, 4.0], shade="a")
    drawing = svg.lines(title="t", seconds=range(6), series=[line])
    path = re.search(r'class="line a" d="([^"]+)"', drawing)
    assert path is not None
    assert path[1].count("M") == 3
    assert drawing.count("<circle") == 2, "points that stand alone must show"


def test_bins_keep_every_count() -> None:
    pairs = [(0.001 * 1.3**n, n + 1.0) for n in range(60)]
    bins = rebin(pairs)
    assert len(bins) <= 50
    assert sum(count for _, _, count in bins) == sum(count for _, count in pairs)
    assert all(math.isclose(a[1], b[0]) for a, b in itertools.pairwise(bins))
    assert bins[0][0] <= pairs[0][0]
    assert pairs[-1][0] <= bins[-1][1]
