"""The rules of the chart's files: short lines and files, one kind each, helpers explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chart.rendering import CHARTS, VARIANTS, render
from tools.place import VERSION

pytestmark = pytest.mark.chart
TEMPLATES = sorted(
    file for chart in CHARTS for file in (chart / "templates").rglob("*") if file.is_file()
)
HELPERS = [file for file in TEMPLATES if file.suffix == ".tpl"]
OBJECTS = [file for file in TEMPLATES if file.suffix == ".yaml"]


def file_name(file: Path) -> str:
    return f"{chart_of(file).name}-{file.name}"


def chart_of(file: Path) -> Path:
    (chart,) = [chart for chart in CHARTS if chart in file.parents]
    return chart


@pytest.mark.parametrize("file", TEMPLATES, ids=file_name)
def test_lines_and_files_are_short(file: Path) -> None:
    lines = file.read_text().splitlines()
    if file.name != "NOTES.txt":
        assert max(len(line) for line in lines) <= 120
    assert len(lines) <= 350
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("file", [f for f in TEMPLATES if "define" in f.read_text()], ids=file_name)
def test_every_helper_says_what_it_is_for(file: Path) -> None:
    text = file.read_text()
    for match in re.finditer(r'\{\{-? define "([^"]+)"', text):
        before = text[: match.start()].rstrip()
        assert before.endswith("*/}}"), f"{match[1]} has no comment"
        assert match[1].startswith(f"{chart_of(file).name}.")


@pytest.mark.parametrize("file", HELPERS, ids=file_name)
def test_every_helper_is_used(file: Path) -> None:
    files = (chart_of(file) / "templates").rglob("*.*")
    everything = "".join(template.read_text() for template in files)
    for defined in re.findall(r'define "([^"]+)"', file.read_text()):
        assert f'include "{defined}"' in everything, f"nothing uses {defined}"


@pytest.mark.parametrize("file", OBJECTS, ids=file_name)
def test_a_file_holds_one_kind_and_is_named_by_it(file: Path) -> None:
    kinds = set(re.findall(r"^kind: (\w+)", file.read_text(), re.MULTILINE))
    if file.name == "extraobjects.yaml":
        assert kinds == set()
        return
    (kind,) = kinds
    words = "test" if kind == "Pod" else kind.lower()
    assert file.stem.replace("-", "").startswith(words)


@pytest.mark.parametrize("file", TEMPLATES, ids=file_name)
def test_a_look_up_decides_nothing_but_a_value(file: Path) -> None:
    """`helm template` answers every look-up with nothing."""
    found = re.findall(r"\blookup\b", re.sub(r"\{\{-? /\*.*?\*/", "", file.read_text(), flags=re.S))
    assert len(found) == (1 if file.name == "secret-admin.yaml" else 0)
    assert "{{ template" not in file.read_text()


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_notes_are_short_and_name_no_secret(chart: Path) -> None:
    text = (chart / "templates" / "NOTES.txt").read_text()
    assert len(text.splitlines()) <= 65
    assert "{{ .Values.huggingface.token.value" not in text


@pytest.mark.parametrize("file", [f for _, f in VARIANTS if f], ids=file_name)
def test_a_variant_says_in_its_first_line_what_it_is(file: Path) -> None:
    assert re.match(r"# [A-Z].*\.$", file.read_text().splitlines()[0])


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_the_default_image_is_that_of_this_version_from_no_registry(chart: Path) -> None:
    images = set(re.findall(r"image: \"([^\"]+)\"", render(chart=chart).text))
    assert images == {f"triton-{'hf' if chart.name == 'triton' else 'load'}:{VERSION}"}
