"""The table of the results: what ran on other machines stays in it, and a failed run shows."""

from __future__ import annotations

import subprocess

import pytest

from tools import fault_table
from tools import run_faults as command
from tools.fault_table import Row

HERE = "k8s-tests/faults/test_results.py"
FIRST = "test_the_newest_row_of_a_fault_wins_and_others_stay"
LAST = "test_the_table_is_written_when_tests_fail_and_their_exit_code_is_returned"


def row(name: str, day: str, **more: str) -> Row:
    return Row(name=name, order=HERE, day=day, **more)


def test_the_newest_row_of_a_fault_wins_and_others_stay() -> None:
    known = [row(f"{FIRST}-a-", "2026-01-02"), row(f"{FIRST}-b-", "2026-01-02")]
    more = [
        row(f"{FIRST}-a-", "2026-01-02", measured="again"),
        row(f"{FIRST}-b-", "2026-01-01", measured="left by an older run"),
    ]
    assert [(r.name, r.measured) for r in fault_table.merged(known, more)] == [
        (f"{FIRST}-a-", "again"),
        (f"{FIRST}-b-", ""),
    ]


def test_rows_are_in_the_order_of_the_tests_and_those_of_no_test_are_left_out() -> None:
    gone = [row("test_that_was_renamed", "2026-01-01"), Row(name="x", order="no/such/file.py")]
    other = Row(name="soak", order="benchmarks/soak")
    found = fault_table.merged([other, *gone], [row(LAST, "2026-01-01"), row(FIRST, "2026-01-01")])
    assert [r.name for r in found] == ["soak", FIRST, LAST]


def test_what_is_committed_is_what_the_command_would_write() -> None:
    rows = fault_table.read()
    assert rows
    assert fault_table.TABLE.read_text("utf-8") == fault_table.table(rows)
    assert fault_table.merged(rows, []) == rows


@pytest.mark.parametrize(("tests", "table", "code"), [(1, 0, 1), (0, 0, 0), (0, 1, 1)])
def test_the_table_is_written_when_tests_fail_and_their_exit_code_is_returned(
    monkeypatch: pytest.MonkeyPatch, tests: int, table: int, code: int
) -> None:
    ran: list[str] = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(words[2])
        return subprocess.CompletedProcess(words, tests if words[2] == "pytest" else 0)

    def write() -> int:
        ran.append("table")
        return table

    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(command.fault_table, "main", write)
    monkeypatch.setattr("sys.argv", ["faults"])
    assert command.main() == code
    assert ran == ["cluster", "pytest", "table"]
