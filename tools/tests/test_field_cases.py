"""The table of field cases: every case is shown by tests that exist, and the page is its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import field_cases
from tools.field_cases import FAILED, PASSED, SKIPPED, Case, CaseError
from tools.place import ROOT


def case(**changes: object) -> Case:
    common = {"id": "X-1", "kind": "chart", "symptom": "a | b", "here": "c", "verdict": "right"}
    return Case(**{**common, "tests": ("test_one",), **changes})  # type: ignore[arg-type]


def test_every_case_names_tests_and_documents_that_exist() -> None:
    defined = field_cases.definitions()
    found = field_cases.cases()
    assert len({one.id for one in found}) == len(found) > 30
    for one in found:
        assert len(field_cases.nodes(one, defined)) >= len(one.tests)
        assert not one.document or (ROOT / one.document).is_file()


def test_the_page_is_made_of_the_table_and_the_last_outcomes() -> None:
    known = json.loads(field_cases.OUTCOMES.read_text("utf-8"))
    expected = field_cases.page(field_cases.cases(), known)
    assert field_cases.PAGE.read_text("utf-8") == expected, "run: make cases ARGS=--page"


def test_a_case_whose_test_is_gone_is_named() -> None:
    with pytest.raises(CaseError, match="X-1: there is no test 'test_one'"):
        field_cases.nodes(case(), {})


def test_a_case_is_as_bad_as_its_worst_test(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase name="test_one[a]"/><testcase name="test_one[b]"><failure/></testcase>'
        '<testcase name="test_two"><skipped/></testcase><testcase name="test_three"/>'
        "</testsuite></testsuites>"
    )
    seen = field_cases.outcomes(report)
    assert seen == {"test_one": FAILED, "test_two": SKIPPED, "test_three": PASSED}
    assert field_cases.judge(case(tests=("test_three",)), seen) == PASSED
    assert field_cases.judge(case(tests=("test_two", "test_three")), seen) == SKIPPED
    assert field_cases.judge(case(tests=("test_one", "test_three")), seen) == FAILED
    assert field_cases.judge(case(tests=("test_never_ran",)), seen) == FAILED


def test_a_bar_in_a_cell_ends_no_cell() -> None:
    assert "a \\| b" in field_cases.page([case()], {})


def test_a_case_without_a_test_or_a_document_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "cases.toml"
    words = 'id = "X"\nkind = "k"\nsymptom = "s"\nhere = "h"\nverdict = "right"\n'
    table.write_text(f"[[case]]\n{words}")
    with pytest.raises(CaseError, match="name the tests that show it"):
        field_cases.cases(table)
