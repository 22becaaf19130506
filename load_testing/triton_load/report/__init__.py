"""Reports of a finished run: one HTML page and a summary for a terminal."""

from __future__ import annotations

from pathlib import Path

from triton_load.record import Record
from triton_load.report import page, summary
from triton_load.report.reading import view_of

PAGE, SUMMARY = "report.html", "summary.txt"


def summarize(record: Record) -> str:
    """Return the summary of a run as text of at most 80 columns."""
    return summary.render(view_of(record))


def write(record: Record, folder: Path) -> str:
    """Write `report.html` and `summary.txt` into a folder; return the summary's text.

    The summary has at most 80 columns. Each file is written whole or not at all.
    """
    view = view_of(record)
    text = summary.render(view)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((PAGE, page.render(view)), (SUMMARY, text)):
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.rename(folder / name)
    return text
