"""Confidence intervals by the bootstrap, for rates over time and for percentiles.

- A rate (requests/s, tokens/s) comes from seconds that depend on each other: a busy second follows
  a busy one. Whole blocks of neighbouring seconds are drawn (circular block bootstrap, Politis and
  Romano 1992), which keeps that dependence inside a block of n^(1/3) seconds, at least 5.
- A percentile comes from a merged histogram, which has no order in time. All n values are drawn
  anew from it, as if requests were independent. The k-th smallest of them is then the histogram's
  value at a rank that is Beta(k, n - k + 1) distributed, so that the rank alone is drawn. Where
  requests are not independent the interval is too narrow: `compare` names the method of each line.

The seed is fixed: the same two runs always give the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SEED = 20240917
CONFIDENCE = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the values."""

    value: float
    low: float
    high: float


def block_length(count: int) -> int:
    """Return the length of a block for a series of `count` seconds."""
    return min(count, max(5, round(math.cbrt(count))))


def mean_draws(values: Sequence[float], *, seed: int = SEED) -> Floats:
    """Return means of series that are put together from blocks of `values`.

    Args:
        values: one for each second, in order; at least one.
        seed: of the random numbers.
    """
    series = np.asarray(values, dtype=np.float64)
    length = block_length(len(series))
    blocks = -(-len(series) // length)
    rng = np.random.default_rng(seed)
    wrapped = np.concatenate([series, series[: length - 1]]) if length > 1 else series
    sums = np.convolve(wrapped, np.ones(length), mode="valid")
    starts = rng.integers(0, len(series), size=(DRAWS, blocks))
    return np.asarray(sums[starts].sum(axis=1) / (blocks * length), dtype=np.float64)


def percentile_draws(
    pairs: Sequence[tuple[float, float]], percent: float, *, seed: int = SEED
) -> Floats:
    """Return a percentile of many samples, each drawn anew from this histogram.

    Args:
        pairs: ascending values with their counts; at least one count above 0.
        percent: 0 to 100.
        seed: of the random numbers.
    """
    values = np.asarray([value for value, _ in pairs], dtype=np.float64)
    reached = np.cumsum([count for _, count in pairs], dtype=np.float64)
    total = int(reached[-1])
    rank = min(total, max(1, math.ceil(total * percent / 100 - 1e-9)))
    drawn = np.random.default_rng(seed).beta(rank, total - rank + 1, size=DRAWS)
    places = np.searchsorted(reached, drawn * total)
    return np.asarray(values[np.minimum(places, len(values) - 1)], dtype=np.float64)


def interval(value: float, draws: Floats) -> Interval:
    """Return the interval that holds the middle 95 % of all draws."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value=value, low=float(low), high=float(high))


def change(before: float, after: float, first: Floats, second: Floats) -> Interval:
    """Return the relative change from one run to another with its interval; 0.1 is 10 % more.

    Not a number where the first run's value is 0.

    Args:
        before: the first run's estimate.
        after: the second run's.
        first: draws of the first run.
        second: draws of the second run, made with another seed.
    """
    usable = first != 0
    if before == 0 or not usable.any():
        return Interval(value=math.nan, low=math.nan, high=math.nan)
    return interval(after / before - 1, second[usable] / first[usable] - 1)
