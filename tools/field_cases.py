"""Every field case with the tests that show it, and a page of the results.

Usage: python -m tools.field_cases [--only ID...] [--page]

k8s-tests/field-cases.toml names for each case what people ran into, what happens here, and the
tests that show it. The command runs those tests, keeps the outcome of each case in
field-cases.json beside it, and writes docs/field-cases.md. `--page` writes the page from the last
outcomes and runs nothing.

Exit codes: 0 every case holds; 1 a test of a case failed; 2 a case names a test that is not there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.place import ROOT
from triton_hf.progress import Progress

TABLE = ROOT / "k8s-tests" / "field-cases.toml"
OUTCOMES = TABLE.with_suffix(".json")
PAGE = ROOT / "docs" / "field-cases.md"
FOLDERS = ("image/tests", "k8s-tests", "load_testing/tests", "tools/tests", "charts", "benchmarks")
VERDICTS = {"right": "right", "refused": "refused in a sentence", "documented": "documented"}
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class CaseError(Exception):
    """The table of cases is wrong; the text says where."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case.

    Attributes:
        id: as it was reported.
        kind: part of the product that it concerns.
        symptom: what people ran into.
        here: what happens here.
        verdict: one of VERDICTS.
        tests: names of the test functions that show it; none for what only a document says.
        document: path of the document that says it, empty when no document has to.
    """

    id: str
    kind: str
    symptom: str
    here: str
    verdict: str
    tests: tuple[str, ...] = ()
    document: str = ""


def cases(table: Path = TABLE) -> list[Case]:
    """Return the cases of the table in its order.

    Raises:
        CaseError: a case lacks something, or says it twice.
    """
    found = []
    for row in tomllib.loads(table.read_text("utf-8"))["case"]:
        try:
            case = Case(**{**row, "tests": tuple(row.get("tests", ()))})
        except TypeError as error:
            raise CaseError(f"{table.name}, {row.get('id')}: {error}") from None
        if case.verdict not in VERDICTS:
            raise CaseError(f"{case.id}: '{case.verdict}' is none of {', '.join(VERDICTS)}")
        if not case.tests and not case.document:
            raise CaseError(f"{case.id}: name the tests that show it, or the document that says it")
        found.append(case)
    return found


def definitions(folders: Sequence[str] = FOLDERS) -> dict[str, list[str]]:
    """Return the files that define each test function."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("test_*.py")):
            for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text("utf-8"), re.M):
                found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def nodes(case: Case, defined: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the node ids of a case's tests.

    Raises:
        CaseError: a test does not exist.
    """
    found = []
    for name in case.tests:
        if name not in defined:
            raise CaseError(f"{case.id}: there is no test '{name}'")
        found += [f"{path}::{name}" for path in defined[name]]
    return found


def run(ids: Iterable[str]) -> dict[str, str]:
    """Run tests; return the worst outcome of each test function by its name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *sorted(set(ids))]
        subprocess.run(words, cwd=ROOT, check=False)
        if not report.exists():
            raise CaseError("pytest wrote no report; its words are above")
        return outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    """Return the worst outcome of each test function in a JUnit report."""
    rank = (PASSED, SKIPPED, FAILED)
    found: dict[str, str] = {}
    for test in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it just now
        name = test.attrib["name"].partition("[")[0]
        failed = test.find("failure") is not None or test.find("error") is not None
        seen = FAILED if failed else SKIPPED if test.find("skipped") is not None else PASSED
        found[name] = max(found.get(name, PASSED), seen, key=rank.index)
    return found


def judge(case: Case, seen: Mapping[str, str]) -> str:
    """Return the outcome of a case: the worst one of its tests."""
    if not case.tests:
        return "document"
    rank = (PASSED, SKIPPED, FAILED)
    return max((seen.get(name, FAILED) for name in case.tests), key=rank.index)


def page(found: Sequence[Case], known: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page: a table of all cases with their last outcome."""
    lines = [
        "# Field cases",
        "",
        "What people who serve models on Kubernetes have reported, and what happens here.",
        "`make cases` runs the tests of every row and writes this page.",
        "",
        "| case | part | what people ran into | what happens | verdict | shown by | last run |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in found:
        shown = ", ".join(f"`{name}`" for name in case.tests)
        if case.document:
            link = f"[{case.document}](../{case.document})"
            shown = f"{shown}, {link}" if shown else link
        last = known.get(case.id, {"outcome": "not yet", "day": ""})
        cells = [case.id, case.kind, case.symptom, case.here, VERDICTS[case.verdict], shown]
        cells.append(f"{last['outcome']} {last['day']}".strip())
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the tests of the cases and write the page; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.field_cases", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="cases to run, instead of all")
    parser.add_argument("--page", action="store_true", help="write the page, run nothing")
    options = parser.parse_args()
    say = Progress("cases").say
    known = json.loads(OUTCOMES.read_text("utf-8")) if OUTCOMES.exists() else {}
    try:
        found = cases()
        chosen = [case for case in found if not options.only or case.id in options.only]
        defined = definitions()
        ids = [node for case in chosen for node in nodes(case, defined)]
        if not options.page:
            say(f"{len(chosen)} cases, {len(set(ids))} tests")
            seen = run(ids)
            day = datetime.datetime.now(datetime.UTC).date().isoformat()
            known |= {case.id: {"outcome": judge(case, seen), "day": day} for case in chosen}
    except CaseError as error:
        print(f"cases: {error}", file=sys.stderr)
        return 2
    known = {case.id: known[case.id] for case in found if case.id in known}
    OUTCOMES.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found, known), encoding="utf-8")
    bad = [case.id for case in chosen if known.get(case.id, {}).get("outcome") == FAILED]
    if not options.page:
        say(f"{len(chosen) - len(bad)} of {len(chosen)} cases hold")
    say(f"{PAGE.relative_to(ROOT)} is written")
    if bad:
        print(f"cases: these failed: {', '.join(bad)}", file=sys.stderr)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
