"""The record of a run survives its file, and its percentiles merge over workers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import jsonschema
import pytest

from lib.records import some_record
from triton_load import record
from triton_load.errors import LoadTestError


def test_a_record_is_the_same_after_its_file_and_valid_against_the_published_schema(
    tmp_path: Path,
) -> None:
    written = some_record()
    file = record.write(written, tmp_path)
    document = json.loads(file.read_text())
    jsonschema.validate(document, json.loads(record.SCHEMA_FILE.read_text()))
    back = record.read(tmp_path)
    assert back.to_json() == document
    assert back.distributions[record.LATENCY].quantile(50) == pytest.approx(0.2, rel=1e-3)


def test_percentiles_of_merged_workers_are_those_of_all_values() -> None:
    source = random.Random(7)
    values = [source.lognormvariate(-2, 1) for _ in range(4000)]
    merged = record.Distribution(record.LATENCY)
    for start in range(4):
        part = record.Distribution(record.LATENCY)
        for value in values[start::4]:
            part.add(value)
        merged.merge(part.encode())
    assert merged.count == 4000
    ordered = sorted(values)
    for percent in (50, 95, 99):
        assert merged.quantile(percent) == pytest.approx(ordered[40 * percent - 1], rel=2e-3)


@pytest.mark.parametrize(("count", "percent"), [(11, 95), (60, 99), (99, 99), (700, 99.9)])
def test_no_percentile_leaves_out_more_values_than_it_may(count: int, percent: float) -> None:
    found = record.Distribution(record.LATENCY)
    found.add(0.1, count - 1)
    found.add(9.0)
    assert found.quantile(percent) == pytest.approx(9.0, rel=2e-3)


def test_a_percentile_is_no_higher_than_it_must_be() -> None:
    found = record.Distribution(record.LATENCY)
    found.add(0.1, 99)
    found.add(9.0)
    assert found.quantile(99) == pytest.approx(0.1, rel=2e-3)
    assert record.Distribution(record.LATENCY).quantile(99) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[]", "not the record"),
        ('{"version": 2}', "version 2"),
        ('{"version": 1}', "not the record"),
    ],
)
def test_a_file_that_is_no_record_is_one_sentence(
    tmp_path: Path, text: str | None, words: str
) -> None:
    file = tmp_path / "run.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(LoadTestError, match=words):
        record.read(file)
