"""The tables of parameters are those of the one table in the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import parameters


def test_the_tables_of_the_model_repository_are_up_to_date() -> None:
    text = parameters.README.read_text("utf-8")
    assert parameters.generated(text) == text, "run `make generate`"


def test_a_changed_row_is_noticed_and_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "README.md"
    text = parameters.README.read_text("utf-8")
    copy.write_text(text.replace("| `slots` | a whole number from 1", "| `slots` | from 2"))
    monkeypatch.setattr("sys.argv", ["parameters", "--check"])
    assert parameters.main(copy) == 1
    monkeypatch.setattr("sys.argv", ["parameters"])
    assert parameters.main(copy) == 0
    assert copy.read_text("utf-8") == text
