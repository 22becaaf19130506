"""Objectives as the user writes them, and the verdict that follows.

p95 latency: 2 s
p95 ttft: 500 ms
error ratio: 0.01
goodput: 3.5
min requests: 100
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from triton_load import record
from triton_load.errors import LoadTestError
from triton_load.record import Distribution, ErrorClass, Objective, Totals, Verdict, Workers

EXIT_PASS, EXIT_FAIL, EXIT_INPUT, EXIT_INVALID = 0, 1, 2, 3
MAX_CPU_PERCENT = 80.0
_METRICS: Mapping[str, str] = {
    "latency": record.LATENCY,
    "ttft": record.TTFT,
    "inter token": record.INTER_TOKEN,
}
_AT_LEAST = ("goodput", "throughput", "output tokens")
_DURATION = re.compile(r"^(p\d{1,2}(?:\.\d+)?|mean|max) (latency|ttft|inter token)$")
_TIME = re.compile(r"^(\d+(?:\.\d+)?) ?(us|ms|s|min)$")
_UNITS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_KNOWN = (
    "'p95 latency' (any percentile, mean or max; also of ttft and inter token), 'error ratio', "
    "'goodput', 'throughput', 'output tokens', 'min requests'"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """One objective: its name and its limit (seconds, a ratio, or a plain number)."""

    name: str
    limit: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validity:
    """What makes a run worthless.

    Attributes:
        min_requests: Fewer ended requests prove nothing.
        max_lag: Longest 95th percentile of the generator's lateness, seconds.
        interrupted: Whether somebody ended the run early.
        cut: Requests beyond what the generator may have in flight, which never started.
        grace: Seconds that requests had to end after the last one started; 0 cuts them off.
    """

    min_requests: int
    max_lag: float
    interrupted: bool = False
    cut: int = 0
    grace: float = 0.0


def read_goals(file: Path) -> tuple[Goal, ...]:
    """Read objectives from a YAML file, a map of names to limits.

    Raises:
        LoadTestError: It cannot be read, or an objective is unknown or has no sound limit.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadTestError(f"cannot read the objectives {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise LoadTestError(f"{file} is not YAML: {reason}") from error
    if document is None:
        return ()
    if not isinstance(document, dict):
        raise LoadTestError(f"{file} must map objectives to limits, as in 'p95 ttft: 500 ms'")
    return parse_goals(document, where=str(file))


def parse_goals(document: Mapping[Any, Any], *, where: str) -> tuple[Goal, ...]:
    """Read objectives from a map.

    Raises:
        LoadTestError: An objective is unknown or has no sound limit.
    """
    return tuple(_goal(str(name), value, where) for name, value in document.items())


def _goal(name: str, value: Any, where: str) -> Goal:
    if _DURATION.match(name):
        limit = _seconds(value)
        if limit is None:
            raise LoadTestError(f"{where}: '{name}' needs a time such as 500 ms, not {value!r}")
        return Goal(name=name, limit=limit)
    if name not in ("error ratio", "min requests", *_AT_LEAST):
        raise LoadTestError(f"{where}: unknown objective '{name}'; known: {_KNOWN}")
    number = _number(value)
    if number is None or number < 0 or (name == "error ratio" and number > 1):
        kind = "a ratio from 0 to 1" if name == "error ratio" else "a number of at least 0"
        raise LoadTestError(f"{where}: '{name}' needs {kind}, not {value!r}")
    return Goal(name=name, limit=number)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _seconds(value: Any) -> float | None:
    found = _TIME.match(value.strip()) if isinstance(value, str) else None
    return float(found[1]) * _UNITS[found[2]] if found else None


def limits(goals: Sequence[Goal]) -> dict[str, float]:
    """What a single request must keep to count as good: the tightest limit of each time."""
    found: dict[str, float] = {}
    for goal in goals:
        if match := _DURATION.match(goal.name):
            name = _METRICS[match[2]]
            found[name] = min(goal.limit, found.get(name, math.inf))
    return found


def evaluate(
    goals: Sequence[Goal], totals: Totals, distributions: Mapping[str, Distribution]
) -> tuple[Objective, ...]:
    """Each objective with what was measured; one without a measurement is not met."""
    return tuple(_measured(goal, totals, distributions) for goal in goals)


def _measured(goal: Goal, totals: Totals, distributions: Mapping[str, Distribution]) -> Objective:
    value: float | None
    if match := _DURATION.match(goal.name):
        value = _statistic(match[1], distributions.get(_METRICS[match[2]]))
        bound = f"<= {_text(goal.limit)}"
    elif goal.name == "error ratio":
        value = totals.failed / totals.requests if totals.requests else None
        bound = f"<= {goal.limit:g}"
    else:
        measured: dict[str, tuple[float | None, str]] = {
            "goodput": (totals.goodput, "requests/s"),
            "throughput": (totals.requests_per_second, "requests/s"),
            "output tokens": (totals.output_tokens_per_second, "tokens/s"),
            "min requests": (float(totals.requests), "requests"),
        }
        value, unit = measured[goal.name]
        bound = f">= {goal.limit:g} {unit}"
    upper = bound.startswith("<=")
    met = value is not None and (value <= goal.limit if upper else value >= goal.limit)
    return Objective(name=goal.name, bound=bound, limit=goal.limit, measured=value, met=met)


def _statistic(name: str, found: Distribution | None) -> float | None:
    if found is None or not found.count:
        return None
    if name == "mean":
        return found.mean
    return found.maximum if name == "max" else found.quantile(float(name[1:]))


def _text(seconds: float) -> str:
    return f"{seconds * 1000:g} ms" if seconds < 1 else f"{seconds:g} s"


def judge(
    objectives: Sequence[Objective],
    totals: Totals,
    workers: Workers,
    validity: Validity,
    errors: Sequence[ErrorClass] = (),
) -> Verdict:
    """Pass, fail or invalid. What makes a run invalid outweighs every objective.

    Without an objective for errors, one failed request fails the run, as Locust itself has it.
    Where every request failed, neither their number nor the generator's pace says anything: the
    fault is the reason.
    """
    invalid = _invalid(totals, workers, validity)
    if invalid:
        return Verdict(result="invalid", reasons=tuple(invalid), exit_code=EXIT_INVALID)
    all_failed = 0 < totals.requests == totals.failed
    reasons = [_first_fault(totals, errors)] if all_failed else []
    reasons += [
        f"{each.name} is {_value(each)}, objective {each.bound}"
        for each in objectives
        if not each.met
    ]
    watched = any(each.name == "error ratio" for each in objectives)
    if totals.failed and not all_failed and not watched:
        reasons.append(f"{totals.failed} of {totals.requests} requests failed")
    if validity.grace and totals.unfinished:
        reasons.append(
            f"{totals.unfinished} requests had no answer {_text(validity.grace)} after the end"
        )
    if reasons:
        return Verdict(result="fail", reasons=tuple(reasons), exit_code=EXIT_FAIL)
    return Verdict(result="pass", reasons=(), exit_code=EXIT_PASS)


def _first_fault(totals: Totals, errors: Sequence[ErrorClass]) -> str:
    text = f"all {totals.requests} requests failed"
    return f"{text}, most of them so: {errors[0].name}: {errors[0].example}" if errors else text


def _invalid(totals: Totals, workers: Workers, validity: Validity) -> list[str]:
    reasons = _incomplete(workers, validity)
    if totals.failed < totals.requests or not totals.requests:
        reasons += _unmeasurable(totals, workers, validity)
    return reasons


def _incomplete(workers: Workers, validity: Validity) -> list[str]:
    reasons = []
    if workers.seen < workers.expected:
        reasons.append(f"only {workers.seen} of {workers.expected} workers came")
    if workers.lost:
        reasons.append(f"{workers.lost} of {workers.seen} workers were lost during the run")
    if validity.interrupted:
        reasons.append("the run was interrupted before its end")
    return reasons


def _unmeasurable(totals: Totals, workers: Workers, validity: Validity) -> list[str]:
    reasons = []
    if totals.requests < validity.min_requests:
        few = f"only {totals.requests} requests ended, at least {validity.min_requests} are needed"
        reasons.append(few)
    if workers.cpu_percent > MAX_CPU_PERCENT:
        reasons.append(
            f"the generator was saturated: {workers.cpu_percent:.0f} % of a core, "
            f"{MAX_CPU_PERCENT:.0f} % is the limit; use more workers"
        )
    if workers.master_cpu_percent > MAX_CPU_PERCENT:
        reasons.append(
            f"the master was saturated: {workers.master_cpu_percent:.0f} % of a core, "
            f"{MAX_CPU_PERCENT:.0f} % is the limit; use fewer workers or give it a free core"
        )
    if workers.lag_seconds > validity.max_lag:
        reasons.append(
            f"the generator was late: p95 of its lag {_text(round(workers.lag_seconds, 4))}, "
            f"limit {_text(validity.max_lag)}; use more workers or a free core"
        )
    if validity.cut:
        reasons.append(f"{validity.cut} arrivals exceeded --max-in-flight and never started")
    return reasons


def _value(objective: Objective) -> str:
    if objective.measured is None:
        return "unknown"
    timed = _DURATION.match(objective.name)
    return _text(round(objective.measured, 4)) if timed else f"{objective.measured:.4g}"
