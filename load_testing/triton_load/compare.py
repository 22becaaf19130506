"""Compare two runs: `python3 -m triton_load.compare BEFORE AFTER`.

Each argument is the folder of a run or its run.json. Every number comes with the change from the
first run to the second and the 95 % confidence interval of that change. Where the interval holds 0
no difference is shown, whatever the numbers look like. How intervals are made: `report.resample`.

Exit codes: 0 compared, 1 something got worse by more than --worse-than, 2 bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_load import record as records
from triton_load.errors import LoadTestError
from triton_load.record import Record, Second
from triton_load.report import resample
from triton_load.report.svg import milliseconds, number

COLUMNS = 80
FEWEST_BEYOND = 10  # values above a percentile, below which it says nothing
BLOCKS, COUNTS = "blocks of seconds", "histogram"
TIMES = {
    records.LATENCY: "latency",
    records.TTFT: "ttft",
    records.INTER_TOKEN: "inter-token",
}
PERCENTS = (50.0, 95.0, 99.0)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One number of both runs.

    Attributes:
        name: what it is.
        before: in the first run.
        after: in the second run.
        change: relative, with its interval; 0.1 is 10 % more.
        higher_is_better: whether more of it is good.
        method: what was drawn anew for the interval.
    """

    name: str
    before: float
    after: float
    change: resample.Interval
    higher_is_better: bool
    method: str

    @property
    def word(self) -> str:
        """Return `better`, `worse` or `same`: the last when the interval holds 0."""
        if math.isnan(self.change.low) or self.change.low <= 0 <= self.change.high:
            return "same"
        return "better" if (self.change.low > 0) == self.higher_is_better else "worse"

    @property
    def surely_worse_by(self) -> float:
        """Return the smallest relative loss inside the interval; 0 when it is not worse."""
        if self.word != "worse":
            return 0.0
        return min(abs(self.change.low), abs(self.change.high))


def compare(before: Record, after: Record) -> list[Line]:
    """Return every number that both runs have enough values for."""
    lines = [
        rate_line(before, after, "requests/s", lambda s: s.passed),
        rate_line(before, after, "output tokens/s", lambda s: s.tokens),
    ]
    for name, word in TIMES.items():
        pair = [run.distributions.get(name) for run in (before, after)]
        if pair[0] is None or pair[1] is None:
            continue
        for percent in PERCENTS:
            lines.append(percentile_line(pair[0], pair[1], f"p{percent:g} {word}", percent))
    return [line for line in lines if line is not None]


def rate_line(
    before: Record, after: Record, name: str, part: Callable[[Second], float]
) -> Line | None:
    """Compare a rate; None when a run has none of it."""
    series = [[float(part(second)) for second in run.series] for run in (before, after)]
    if not all(any(values) for values in series):
        return None
    means = [sum(values) / len(values) for values in series]
    first = resample.mean_draws(series[0], seed=resample.SEED)
    second = resample.mean_draws(series[1], seed=resample.SEED + 1)
    change = resample.change(means[0], means[1], first, second)
    return Line(
        name=name,
        before=means[0],
        after=means[1],
        change=change,
        higher_is_better=True,
        method=BLOCKS,
    )


def percentile_line(
    before: records.Distribution, after: records.Distribution, name: str, percent: float
) -> Line | None:
    """Compare a percentile; None when too few values lie above it."""
    if min(before.count, after.count) * (1 - percent / 100) < FEWEST_BEYOND:
        return None
    first = resample.percentile_draws(before.buckets(), percent, seed=resample.SEED)
    second = resample.percentile_draws(after.buckets(), percent, seed=resample.SEED + 1)
    values = (before.quantile(percent), after.quantile(percent))
    return Line(
        name=name,
        before=values[0],
        after=values[1],
        change=resample.change(values[0], values[1], first, second),
        higher_is_better=False,
        method=COUNTS,
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what was asked for differently, one line each."""
    found = []
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            found.append(f"{name}: {before.get(name)} -> {after.get(name)}")
    return found


def warnings(before: Record, after: Record) -> list[str]:
    """Return why the two runs may not be comparable, one sentence each."""
    found = [
        f"the {word} run is invalid: its numbers prove nothing."
        for word, run in (("first", before), ("second", after))
        if run.verdict.result == "invalid"
    ]
    found += [f"asked for differently: {text}" for text in differences(before.config, after.config)]
    for word, run in (("first", before), ("second", after)):
        if len(run.series) < 30:
            found.append(f"the {word} run has {len(run.series)} s; its rates need 30 s or more.")
    return found


def render(before: Record, after: Record, lines: Sequence[Line]) -> str:
    """Return the comparison as text of at most 80 columns."""
    rows = [f"{'':<17}{'before':>10}{'after':>10}{'change':>10}   {'95 % interval':<19}"]
    rows += [row(line) for line in lines]
    if not lines:
        rows.append("nothing to compare: one of the runs has too few answers")
    rows += [
        "",
        "Intervals: rates by bootstrap over blocks of neighbouring seconds; percentiles",
        "by bootstrap of the merged histograms, as if requests were independent.",
    ]
    for text in warnings(before, after):
        flat = " ".join(f"- {text}".split())
        rows.append(flat if len(flat) <= COLUMNS else flat[: COLUMNS - 1] + "…")
    return "\n".join(text.rstrip() for text in rows) + "\n"


def row(line: Line) -> str:
    """Return one line of the table."""
    form = number if line.method == BLOCKS else (lambda value: milliseconds(1000 * value))
    if math.isnan(line.change.value):
        return f"{line.name:<17}{form(line.before):>10}{form(line.after):>10}{'':>10}"
    spread = f"{percent(line.change.low)} to {percent(line.change.high)}"
    return (
        f"{line.name:<17}{form(line.before):>10}{form(line.after):>10}"
        f"{percent(line.change.value):>10}   {spread:<22}{line.word}"
    )


def percent(change: float) -> str:
    """Return a relative change in percent with its sign."""
    value = 100 * change
    return f"{value:+.0f} %" if abs(value) >= 100 else f"{value:+.1f} %"


def to_json(before: Record, after: Record, lines: Sequence[Line]) -> dict[str, Any]:
    """Return the comparison for programs."""
    return {
        "before": before.name,
        "after": after.name,
        "confidence": resample.CONFIDENCE,
        "draws": resample.DRAWS,
        "warnings": warnings(before, after),
        "lines": [{**dataclasses.asdict(line), "word": line.word} for line in lines],
    }


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m triton_load.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("before", type=Path, help="folder or run.json of the first run")
    parser.add_argument("after", type=Path, help="folder or run.json of the second run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--worse-than",
        type=float,
        metavar="PERCENT",
        help="exit 1 when a number got worse by more than this, with 95 %% confidence",
    )
    options = parser.parse_args()
    try:
        before, after = records.read(options.before), records.read(options.after)
    except LoadTestError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    lines = compare(before, after)
    if options.json:
        print(json.dumps(to_json(before, after, lines), indent=1))
    else:
        print(render(before, after, lines), end="")
    if options.worse_than is None:
        return 0
    return int(any(100 * line.surely_worse_by > options.worse_than for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
