from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboards import draw, known_metrics, panels, story
from lib.prometheus import Prometheus, PrometheusError, binary, running

QUERIES = list(panels.queries(panels.load_all()))


@pytest.fixture(scope="module")
def program() -> Path:
    found = binary("prometheus")
    if found is None or binary("promtool") is None:
        pytest.skip("needs Prometheus: python3 -m cluster.binaries prometheus")
    return found


@pytest.fixture(scope="module")
def told(
    program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, float]]:
    """A real Prometheus that holds the story, and the time at which it ends."""
    folder = tmp_path_factory.mktemp("story")
    end = float(int(time.time()) // 60 * 60 - 600)
    promtool = binary("promtool")
    assert promtool is not None
    story.write_blocks(promtool, folder, end=end)
    with running(program, folder, scrape=[]) as prometheus:
        yield prometheus, end


def values(prometheus: Prometheus, name: str) -> dict[str, str]:
    (dashboard,) = [d for d in panels.load_all() if d.name == name]
    return panels.choose(dashboard, prometheus, {}, interval="1m")


@pytest.mark.parametrize(
    ("panel", "query"), QUERIES, ids=[f"{p.dashboard}-{p.title}-{q.legend}" for p, q in QUERIES]
)
def test_a_query_returns_data_from_a_release_that_has_all_metrics(
    told: tuple[Prometheus, float], panel: panels.Panel, query: panels.Query
) -> None:
    prometheus, end = told
    expression = panels.fill(query.expression, values(prometheus, panel.dashboard))
    answer = prometheus.query_range(expression, start=end - 600, end=end, step=60)
    assert answer
    assert all(value == value for series in answer for value in series.values)


@pytest.mark.parametrize(
    ("dashboard", "title", "expected"),
    [
        ("overview", "Requests", 2 * story.RATE),
        ("overview", "Errors", story.FAILED_SHARE / (1 + story.FAILED_SHARE)),
        ("overview", "Generated tokens", 2 * story.RATE * story.TOKENS),
        ("overview", "Ready replicas", 2.0),
        ("model", "Slots in use", 6 / 8),
        ("gpu", "Energy of a generated token", 310 / (story.RATE * story.TOKENS)),
    ],
)
def test_a_panel_shows_the_number_that_the_story_tells(
    told: tuple[Prometheus, float], dashboard: str, title: str, expected: float
) -> None:
    prometheus, end = told
    panel, query = next((p, q) for p, q in QUERIES if p.dashboard == dashboard and p.title == title)
    expression = panels.fill(query.expression, values(prometheus, panel.dashboard))
    assert prometheus.query(expression, time=end)[0].last == pytest.approx(expected, rel=0.01)


def test_every_dashboard_is_drawn_and_nothing_is_missing(
    told: tuple[Prometheus, float], tmp_path: Path
) -> None:
    prometheus, end = told
    files, missing = draw.draw_all(prometheus, tmp_path, minutes=20, chosen={}, end=end)
    assert missing == []
    assert [path.name for path in files] == ["gpu.png", "model.png", "overview.png"]
    for path in files:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 1000
        assert height > 500


def test_a_query_without_data_is_named_and_the_rest_drawn(
    told: tuple[Prometheus, float], tmp_path: Path
) -> None:
    prometheus, end = told
    files, missing = draw.draw_all(
        prometheus, tmp_path, minutes=20, chosen={"deployment": "other"}, end=end
    )
    assert len(files) == 3
    of_other = {text.split(":")[0] for text in missing}
    assert {title for title in of_other if title.startswith("overview")} == {
        "overview / Ready replicas",
        "overview / Replicas now and wanted",
        "overview / Restarts",
    }
    assert "gpu / Engine and tensor cores active" in of_other  # of DCGM, which knows pods
    assert not any("triton_hf" in text or "nv_" in text for text in missing)


def test_no_release_in_prometheus_is_one_sentence_for_each_dashboard(
    told: tuple[Prometheus, float], tmp_path: Path
) -> None:
    prometheus, end = told
    files, missing = draw.draw_all(
        prometheus, tmp_path, minutes=20, chosen={"namespace": "other"}, end=end
    )
    assert files == []
    assert len(missing) == 3
    assert all("has no value" in sentence for sentence in missing)


def test_nobody_at_the_address_is_one_sentence() -> None:
    with pytest.raises(PrometheusError, match=r"no Prometheus answers at http://127\.0\.0\.1:1"):
        Prometheus(url="http://127.0.0.1:1").query("up")


def test_the_story_tells_of_every_metric_that_a_panel_uses() -> None:
    known = known_metrics.engine() | known_metrics.TRITON | known_metrics.TRITON_GPU
    assert story.names() <= known | known_metrics.KUBERNETES | known_metrics.DCGM
