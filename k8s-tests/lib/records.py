"""A record of a load test, for tests of what reads one."""

from __future__ import annotations

from triton_load import record


def some_record() -> record.Record:
    """Return the record of a run of three requests."""
    latency = record.Distribution(record.LATENCY)
    for value in (0.1, 0.2, 0.3):
        latency.add(value)
    return record.Record(
        name="run",
        started=1.5,
        config={"host": "http://localhost", "users": 2},
        totals=record.Totals(
            requests=3,
            failed=0,
            unfinished=0,
            duration=1.0,
            requests_per_second=3.0,
            output_tokens_per_second=9.0,
            goodput=3.0,
        ),
        distributions={record.LATENCY: latency},
        series=(record.Second(at=0, users=2, passed=3, latency={"50": 0.2}),),
        errors=(record.ErrorClass(name="HTTP 503", count=1, example="busy"),),
        workers=record.Workers(expected=1, seen=1, lost=0, cpu_percent=3.0, lag_seconds=0.001),
        objectives=(
            record.Objective(
                name="p95 latency", bound="<= 1 s", limit=1.0, measured=None, met=False
            ),
        ),
        verdict=record.Verdict(result="fail", reasons=("why",), exit_code=1),
    )
