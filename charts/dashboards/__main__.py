"""Write the dashboards of the chart, or check that they are what this code writes.

Usage: python -m dashboards generate|verify
Exit codes: 0 done or equal, 1 the files differ from the code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import gpu, model, overview

FOLDER = Path(__file__).resolve().parents[1] / "triton" / "files" / "dashboards"
SOURCES: dict[str, Callable[[], Dashboard]] = {
    "overview.json": overview.dashboard,
    "model.json": model.dashboard,
    "gpu.json": gpu.dashboard,
}


def rendered() -> dict[str, str]:
    """Return the text of every file by name; the same code always gives the same text."""
    return {
        name: json.dumps(make().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, make in SOURCES.items()
    }


def generate(folder: Path = FOLDER) -> None:
    """Write every dashboard and remove files that no code makes any more."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = rendered()
    for path in folder.glob("*.json"):
        if path.name not in texts:
            path.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)


def differences(folder: Path = FOLDER) -> list[str]:
    """Return one sentence for each file that is not what the code writes."""
    texts = rendered()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    names = sorted(texts.keys() | found.keys())
    return [f"{name} differs from its code" for name in names if texts.get(name) != found.get(name)]


def main() -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(prog="dashboards", description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("generate", "verify"))
    if parser.parse_args().command == "generate":
        generate()
        return 0
    wrong = differences()
    for sentence in wrong:
        print(
            f"dashboards: {sentence}; run: make generate",
            file=sys.stderr,
        )
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
