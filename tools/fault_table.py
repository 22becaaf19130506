"""The last result of every fault as a table: `python3 -m tools.fault_table`.

Each test of the suite writes its row into the project's cache. The command puts these rows into
results.json beside this file, where those of other machines stay, and makes results.md of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tools import helm, place

TABLE = place.ROOT / "k8s-tests" / "faults" / "results.md"
ROWS = TABLE.with_suffix(".json")
_TRITON = """
import json, urllib.request
print(json.load(urllib.request.urlopen("http://127.0.0.1:8000/v2", timeout=10))["version"])
"""


@dataclass(kw_only=True)
class Row:
    """One fault, what is demanded, what was measured.

    Attributes:
        name: the test's, with its parameters.
        order: the test's file, or what else made the row.
        measured: what happened, in a few words; a test writes it as soon as it knows.
        day: date of the run, YYYY-MM-DD.
        versions: Kubernetes and Triton that were hit.
        cores: of the machine.
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
    cores: int = 0

    def save(self) -> None:
        """Write the row to the cache; an earlier one of the same test is replaced."""
        self.cores = os.cpu_count() or 0
        file = folder() / f"{self.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def folder() -> Path:
    """Return where the rows lie."""
    return place.cache() / "faults"


def fresh() -> list[Row]:
    """Return the rows of all tests that ran here."""
    return [Row(**json.loads(file.read_text("utf-8"))) for file in folder().glob("*.json")]


def read() -> list[Row]:
    """Return the rows that are kept beside this file."""
    return [Row(**row) for row in json.loads(ROWS.read_text("utf-8"))]


def merged(known: list[Row], more: list[Row]) -> list[Row]:
    """Return the newest row of every fault, in the order of files and tests.

    Rows of tests that are no longer in the suite are left out.
    """
    newest: dict[str, Row] = {}
    for row in [*known, *more]:
        if row.name not in newest or row.day >= newest[row.name].day:
            newest[row.name] = row
    placed = sorted((_position(row), row.name) for row in newest.values())
    return [newest[name] for (_, at), name in placed if at >= 0]


def _position(row: Row) -> tuple[str, int]:
    """Return a test's file and its place in it, -1 when it is gone; 0 for what is no test."""
    file = place.ROOT / row.order
    if not row.order.endswith(".py"):
        return row.order, 0
    function = row.name.split("-", 1)[0]
    return row.order, file.read_text("utf-8").find(f"def {function}(") if file.is_file() else -1


class Versions:
    """The versions of what is hit; Triton's is that of the first server that says it."""

    def __init__(self, here: place.Place) -> None:
        """Nothing is asked yet."""
        self._place = here
        self._kubernetes = self._triton = ""

    def text(self) -> str:
        """Return both; Triton's is unknown while no server runs."""
        self._kubernetes = self._kubernetes or self._ask_kubernetes()
        self._triton = self._triton or self._ask_triton()
        return f"Kubernetes {self._kubernetes}, Triton {self._triton or 'unknown'}"

    def _ask_kubernetes(self) -> str:
        said = helm.run(self._place, "kubectl", "version", "-o", "json")
        return str(json.loads(said)["serverVersion"]["gitVersion"])

    def _ask_triton(self) -> str:
        labels = "app.kubernetes.io/name=triton,app.kubernetes.io/component=server"
        words = ("get", "pods", "--all-namespaces", "-l", labels, "-o", "json")
        for pod in json.loads(helm.run(self._place, "kubectl", *words))["items"]:
            about = pod["metadata"]
            inside = ("exec", about["name"], "-c", "triton", "--", "python3", "-c", _TRITON)
            kubectl = ("kubectl", "-n", about["namespace"])
            with contextlib.suppress(helm.CommandFailedError):
                return helm.run(self._place, *kubectl, *inside, timeout=30).strip()
        return ""


def table(found: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "# Faults: the last results",
        "",
        "Written by `python3 -m tools.fault_table` from [results.json](results.json), into which "
        "`make faults`, `make soak` and `make hostile` put their rows. Traffic never retries; each "
        "request has a connection of its own.",
        "",
        "| fault | pass mark | measured | result | run |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        verdict = "passed" if row.passed else "**failed**"
        run = f"{row.day}, {row.seconds:.0f} s, {row.cores} cores, {row.versions}"
        lines.append(f"| {row.fault} | {row.mark} | {row.measured} | {verdict} | {run} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Write rows and table; return 0, or 1 when no test has run here."""
    found = fresh()
    if not found:
        print(f"tools.fault_table: no results in {folder()}; run the suite first", file=sys.stderr)
        return 1
    rows = merged(read(), found)
    text = json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False)
    ROWS.write_text(text + "\n", encoding="utf-8")
    TABLE.write_text(table(rows), encoding="utf-8")
    print(TABLE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
