"""The tables of parameters are those of the one table in the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import parameter_tables


def test_the_tables_of_the_model_repository_are_up_to_date() -> None:
    text = parameter_tables.README.read_text("utf-8")
    assert parameter_tables.generated(text) == text, "run `make generate`"


def test_a_changed_row_is_noticed_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "README.md"
    text = parameter_tables.README.read_text("utf-8")
    copy.write_text(text.replace("| `slots` | a whole number from 1", "| `slots` | from 2"))
    monkeypatch.setattr("sys.argv", ["parameters", "--check"])
    assert parameter_tables.main(copy) == 1
    monkeypatch.setattr("sys.argv", ["parameters"])
    assert parameter_tables.main(copy) == 0
    assert copy.read_text("utf-8") == text
