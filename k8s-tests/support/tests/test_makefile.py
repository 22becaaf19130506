"""What the Makefile starts can be started: each module is found with the paths that it is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from support import place

STARTED = re.compile(r"(?:PYTHONPATH=(\S+) )?\$\(PY\) -m ([\w.]+)")
USUAL = "k8s-tests"  # what the Makefile exports


def started() -> dict[str, set[str]]:
    """Return the modules that the Makefile starts, by the paths that it gives them."""
    found: dict[str, set[str]] = {}
    for paths, module in STARTED.findall((place.ROOT / "Makefile").read_text("utf-8")):
        found.setdefault(paths or USUAL, set()).add(module)
    return found


@pytest.mark.parametrize("paths", sorted(started()))
def test_every_module_of_the_makefile_is_found_with_all_that_it_imports(paths: str) -> None:
    modules = sorted(started()[paths])
    lines = ["import importlib, importlib.util"]
    for module in modules:
        lines.append(f"found = importlib.util.find_spec({module!r})")
        lines.append("main = '.__main__' if found.submodule_search_locations else ''")
        lines.append(f"importlib.import_module({module!r} + main)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=place.ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_makefile_starts_modules_in_several_ways() -> None:
    assert {"scaling.show", "faults", "pytest"} <= set().union(*started().values())
    assert len(started()) >= 3


def test_no_document_sets_a_python_path() -> None:
    """A reader runs make targets; only the Makefile knows where the packages lie."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md", "*NOTES.txt"],
        cwd=place.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(listed) > 10
    assert [name for name in listed if "PYTHONPATH" in (place.ROOT / name).read_text()] == []
