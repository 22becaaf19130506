"""What the Makefile starts can be started: each module is found with the paths that it is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tools import place

STARTED = re.compile(r"(?:python3|\$\(PY\)) -m ([\w.]+)")


def makefile() -> str:
    return (place.ROOT / "Makefile").read_text("utf-8")


def exported() -> str:
    """Return the paths that the Makefile exports."""
    found = re.search(r"^export PYTHONPATH := (.*)$", makefile(), re.MULTILINE)
    assert found
    return found.group(1).replace("$(CURDIR)", str(place.ROOT))


def test_the_makefile_exports_the_paths_of_the_tools() -> None:
    assert exported() == place.python_path()


def test_every_module_of_the_makefile_is_found_with_all_that_it_imports() -> None:
    lines = ["import importlib, importlib.util"]
    for module in sorted(set(STARTED.findall(makefile())) - {"venv"}):
        lines.append(f"found = importlib.util.find_spec({module!r})")
        lines.append("main = '.__main__' if found.submodule_search_locations else ''")
        lines.append(f"importlib.import_module({module!r} + main)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=place.ROOT,
        env={**os.environ, "PYTHONPATH": exported()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_makefile_starts_modules_of_every_kind() -> None:
    wanted = {"cluster", "tools.up", "dashboards.show", "benchmarks.soak", "triton_load.capacity"}
    assert wanted <= set(STARTED.findall(makefile()))


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
