"""Files and functions of the products stay small enough to be read at once."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tools.place import ROOT

PRODUCTS = ("image/triton_*", "image/embedded_triton", "load_testing/triton_load")
LINES_OF_A_FILE = 350
LINES_OF_A_FUNCTION = 50


def files() -> list[Path]:
    """Return the modules of the products."""
    listed = subprocess.run(
        ["git", "ls-files", *(f"{name}/*.py" for name in PRODUCTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split()]


def long_functions(path: Path) -> Iterator[str]:
    """Yield the functions of a module that are too long."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LINES_OF_A_FUNCTION:
                yield f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"


def test_no_file_of_a_product_is_too_long() -> None:
    found = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files()}
    assert len(found) > 80
    assert {name: lines for name, lines in found.items() if lines > LINES_OF_A_FILE} == {}


def test_no_function_of_a_product_is_too_long() -> None:
    assert [line for path in files() for line in long_functions(path)] == []
