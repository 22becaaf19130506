"""The import contracts: a planted violation of each fails `make lint`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.place import ROOT, SOURCES, python_path

PLANTED = [
    ("image/triton_hf/compute/sampler.py", "triton_hf.engines.text", "nothing goes back up"),
    ("image/triton_hf/models/catalog.py", "triton_hf.store.layout", "nothing goes back up"),
    ("image/triton_hf/new_module.py", "json", "new_module"),  # a module that no layer names
    ("image/triton_hf/engines/text.py", "triton_python_backend_utils", "Python backend"),
    ("image/triton_native/library.py", "triton_hf.errors", "native kernels"),
    ("image/triton_hf/health.py", "embedded_triton.server", "Products never import"),
    ("load_testing/triton_load/errors.py", "tools.place", "Products never import"),
    ("load_testing/triton_load/errors.py", "triton_hf.errors", "nothing of the load test"),
    ("tools/wait.py", "lib.dump", "tests share what tools make"),
    (
        "k8s-tests/lib/dump.py",
        "benchmarks.scaling.metrics_pages",
        "Benchmarks use what tests share",
    ),
    ("tools/wait.py", "chart.rendering", "Nothing imports tests"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".venv" / "bin" / "lint-imports", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    shutil.copy(ROOT / ".importlinter", folder)
    for root in (*SOURCES[1:], "tools", "benchmarks"):
        for path in (ROOT / root).rglob("*.py"):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return folder


def test_the_sources_keep_every_contract(copy: Path) -> None:
    done = lint(copy)
    assert (done.returncode, "0 broken" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize(("file", "imported", "words"), PLANTED)
def test_a_planted_import_breaks_its_contract(
    copy: Path, file: str, imported: str, words: str
) -> None:
    path = copy / file
    before = path.read_text("utf-8") if path.exists() else None
    lines = (before or "").splitlines(keepends=True)
    path.write_text("".join([*lines, f"\n\nimport {imported}  # noqa\n"]), encoding="utf-8")
    try:
        done = lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    assert done.returncode != 0, done.stdout
    assert any(words in line for line in done.stdout.splitlines()), done.stdout
