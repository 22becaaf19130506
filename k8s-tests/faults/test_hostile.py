"""Hostile requests end nothing: the server answers the next good one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import hostile
from embedded_triton.server import Server

pytestmark = pytest.mark.triton
SEED = 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tritonserver with a simulated model."""
    with hostile.victim(tmp_path_factory.mktemp("hostile")) as running:
        yield running


def test_5000_hostile_requests_leave_the_server_whole(server: Server) -> None:
    tally = hostile.run(server, seed=SEED, requests=5000)

    assert tally.count == 5000
    assert len(tally.by_kind) == len(hostile.BUILDERS)
    # A fault of ours would be in the text; Triton's own are named by upstream.md.
    assert [a.number for a in tally.wondrous.values() if "see its log" in a.text] == []
    assert "request failed" not in server.output()


def test_the_same_number_is_the_same_request() -> None:
    first, again = ([hostile.make(SEED, n).raw for n in range(300)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 250


def test_the_row_of_the_table_has_counts_and_times() -> None:
    tally = hostile.Tally()
    for number, status in enumerate([200] * 98 + [400, 0]):
        tally.add(hostile.Answer(number=number, kind="x", status=status, seconds=number / 100))
    said = hostile.told(tally)
    assert "98 x 2xx, 1 x 4xx, 0 x 5xx, 1 closed" in said
    assert "p99 0.98 s, slowest 1.0 s" in said
    found = hostile.record(tally, seed=1, seconds=2.0)
    assert (found["requests"], found["p99_seconds"], found["slowest_seconds"]) == (100, 0.98, 0.98)


def _list(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _data(depth: int) -> bytes:
    nested = b"[" * depth + b'"a b c"' + b"]" * depth
    tensor = b'{"name":"user_message","datatype":"BYTES","shape":[1,1],"data":' + nested + b"}"
    return b'{"inputs":[' + tensor + b"]}"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(hostile.request(_list(400_000)), id="400,000 lists in each other"),
        pytest.param(hostile.request(_data(400_000)), id="data 400,000 lists deep"),
        pytest.param(
            hostile.request(
                b"1\r\n \r\n" * 800_000 + b"0\r\n\r\n",
                headers=[("Transfer-Encoding", "chunked")],
            ),
            id="800,000 chunks of one byte",
        ),
    ],
)
def test_what_the_usual_stack_does_not_hold_is_answered(server: Server, raw: bytes) -> None:
    """With stacks of 8 MiB each of these ends Triton 2.51 with signal 11."""
    answer = hostile.send(server.ports.http, 0, hostile.Case(kind="deep", pieces=(raw,)))

    assert answer.status in (200, 400, 500)
    hostile.check_good(server)
