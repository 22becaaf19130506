"""The last result of every fault as a table: `python3 -m faults.results` (PYTHONPATH=k8s-tests).

Each test of the suite writes its row into the project's cache; the command joins the rows into
results.md beside this file. A row that is not in the table was not run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from support import place

TABLE = Path(__file__).with_name("results.md")


@dataclass(kw_only=True)
class Row:
    """One fault, what is demanded, what was measured.

    Attributes:
        order: place in the table.
        measured: what happened, in a few words; a test writes it as soon as it knows.
        day: date of the run, YYYY-MM-DD.
        versions: Kubernetes and Triton that were hit.
    """

    name: str
    order: str
    fault: str = ""
    mark: str = ""
    measured: str = ""
    passed: bool = False
    seconds: float = 0.0
    day: str = ""
    versions: str = ""

    def save(self) -> None:
        """Write the row to the cache; an earlier one of the same test is replaced."""
        file = folder() / f"{self.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def folder() -> Path:
    """Return where the rows lie."""
    return place.cache() / "faults"


def rows() -> list[Row]:
    """Return the rows of all tests that ran here."""
    found = [Row(**json.loads(file.read_text("utf-8"))) for file in folder().glob("*.json")]
    return sorted(found, key=lambda row: row.order)


def versions(here: place.Place) -> str:
    """Return the versions of what is hit."""
    words = ["kubectl", "version", "-o", "json"]
    said = subprocess.run(words, env=here.environment(), capture_output=True, check=True).stdout
    return f"Kubernetes {json.loads(said)['serverVersion']['gitVersion']}, Triton 2.51.0"


def table(found: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "# Faults: the last results",
        "",
        "Written by `python3 -m faults.results` from the runs of `pytest k8s-tests/faults` on a "
        f"machine with {os.cpu_count()} cores. Traffic never retries; each request has a "
        "connection of its own.",
        "",
        "| fault | pass mark | measured | result | run |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        verdict = "passed" if row.passed else "**failed**"
        run = f"{row.day}, {row.seconds:.0f} s, {row.versions}"
        lines.append(f"| {row.fault} | {row.mark} | {row.measured} | {verdict} | {run} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Write the table; return 0, or 1 when no test has run here."""
    found = rows()
    if not found:
        print(f"faults.results: no results in {folder()}; run the suite first", file=sys.stderr)
        return 1
    TABLE.write_text(table(found), encoding="utf-8")
    print(TABLE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
