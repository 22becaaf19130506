"""The end of a run in a terminal: at most 80 columns, the verdict last."""

from __future__ import annotations

import textwrap

from triton_load.report.svg import milliseconds
from triton_load.report.view import PERCENTILES, View

COLUMNS = 80


def render(view: View) -> str:
    """Return the summary as lines of at most 80 columns, with a newline at the end."""
    lines = [*_wrap(view.title), "", *_search(view)]
    lines += _pairs(view.figures)
    lines += ["", *_distributions(view)] if view.distributions else []
    if view.errors:
        lines += ["", "errors"]
        lines += [_cut(f"  {e.count:>7,}  {e.name}: {e.example}") for e in view.errors[:5]]
        lines += [f"  and {len(view.errors) - 5} more kinds"] if len(view.errors) > 5 else []
    if view.objectives:
        lines += ["", *_objectives(view)]
    lines += ["", f"verdict: {view.verdict}"]
    for reason in view.reasons:
        lines += textwrap.wrap(reason, COLUMNS, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _search(view: View) -> list[str]:
    if view.search is None:
        return []
    *heads, _ = view.search.heads
    lines = ["".join(f"{_cut(head, 12):>13}" for head in heads)]
    lines += ["".join(f"{_cut(cell, 12):>13}" for cell in row[:-1]) for row in view.search.rows]
    for line in view.search.answer:
        lines += ["", *textwrap.wrap(line, COLUMNS, subsequent_indent="  ")]
    return [*lines, ""]


def _pairs(figures: dict[str, str]) -> list[str]:
    """Return labels and numbers in two columns."""
    cells = [f"{_cut(label, 24):<25}{_cut(text, 12):>12}" for label, text in figures.items()]
    return ["   ".join(cells[n : n + 2]) for n in range(0, len(cells), 2)]


def _distributions(view: View) -> list[str]:
    heads = ["mean", *(f"p{p:g}" for p in PERCENTILES), "max"]
    lines = [f"{'':<20}" + "".join(f"{head:>10}" for head in heads)]
    for data in view.distributions:
        if data.count:
            values = [data.mean, *(data.percentiles[p] for p in PERCENTILES), data.largest]
            cells = "".join(f"{milliseconds(value):>10}" for value in values)
            lines.append(f"{_cut(data.title, 19):<20}{cells}")
    return lines


def _objectives(view: View) -> list[str]:
    lines = [f"{'objective':<24}{'limit':>18}{'measured':>18}"]
    for objective in view.objectives:
        word = "met" if objective.met else "MISSED"
        lines.append(
            f"{_cut(objective.name, 23):<24}{_cut(objective.limit, 17):>18}"
            f"{_cut(objective.measured, 17):>18}  {word}"
        )
    return lines


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS)


def _cut(text: str, most: int = COLUMNS) -> str:
    flat = " ".join(text.split()) if not text.startswith(" ") else text.rstrip()
    return flat if len(flat) <= most else flat[: most - 1] + "…"
