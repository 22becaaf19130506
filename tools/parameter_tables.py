"""The tables of parameters in model_repository/README.md, from `triton_hf.models.catalog`.

Usage: python -m tools.parameter_tables [--check]; `make generate` writes, `make verify` compares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from tools.place import ROOT
from triton_hf.models.parameters import Parameter
from triton_hf.models.registry import CLASSIFY, EMBED, RANK, TEXT, kinds, model_parameters

README = ROOT / "model_repository" / "README.md"


def table(parameters: Iterable[Parameter], *, defaults: bool) -> str:
    """Return a Markdown table with a row for each parameter."""
    lines = ["| parameter | value | meaning |", "|---|---|---|"]
    for one in parameters:
        default = f" ({one.default})" if defaults and one.default else ""
        lines.append(f"| `{one.name}` | {one.kind.describe()}{default} | {one.meaning} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Return the generated tables by the name in their markers."""
    model = {name: one for kind in kinds() for name, one in model_parameters(kind).items()}
    pooling = {
        one.name: one
        for task in (EMBED, RANK, CLASSIFY)
        for one in task.parameters.values()
        if one.request
    }
    request = [one for one in TEXT.parameters.values() if one.request]
    return {
        "request parameters": table(request, defaults=False),
        "request parameters of other tasks": table(pooling.values(), defaults=False),
        "model parameters": table(model.values(), defaults=True),
    }


def generated(text: str) -> str:
    """Return a document with its tables as they should be.

    Raises:
        ValueError: A marker is missing.
    """
    for name, rows in tables().items():
        begin, end = f"<!-- begin {name} (make generate) -->", f"<!-- end {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{README} lacks {begin} or {end}")
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n\n{rows}\n\n{end}{tail}"
    return text


def main(file: Path = README) -> int:
    """Write the tables, or compare them; return 1 if they are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    options = parser.parse_args()
    text = file.read_text("utf-8")
    made = generated(text)
    if made == text:
        return 0
    if options.check:
        print(f"{file.name} is out of date: run `make generate`", file=sys.stderr)
        return 1
    file.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
