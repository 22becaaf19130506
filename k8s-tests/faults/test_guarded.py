"""What ends Triton does not pass a guarded way in: `publicCalls` without infer."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import hostile
from faults import servers
from tools.ask import Door
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(300)]

Install = Callable[..., dict[str, Any]]
SEED = 7
REQUESTS = 1000
VICTIM = {"engine": "simulated", "parameters": hostile.PARAMETERS}
BOMB = gzip.compress(b"[" + b"0," * (128 << 20) + b"0]")


def path(call: str) -> str:
    return f"/v2/models/{hostile.MODEL}/{call}"


def killer() -> bytes:
    """Return a tensor of 4 TiB, which ends Triton 2.51 with signal 6."""
    tensor = {"name": "user_message", "datatype": "FP32", "shape": [1 << 40, 1], "data": [1.0]}
    return json.dumps({"inputs": [tensor]}).encode()


def through(entrance: Door, number: int) -> hostile.Answer:
    """Send a hostile request through a door, under its host's name."""
    case = hostile.make(SEED, number)
    host = f"Host: {entrance.host}".encode()
    pieces = tuple(piece.replace(b"Host: localhost", host) for piece in case.pieces)
    case = dataclasses.replace(case, pieces=pieces)
    return hostile.send(entrance.port, number, case, address=entrance.address)


def whole(release: Release, entrance: Door) -> None:
    """Check that a good request is answered and that no server was started again."""
    body = json.dumps({"user_message": "a b c", "max_tokens": 3}).encode()
    status, said = entrance.request("POST", path("generate"), body)
    assert (status, json.loads(said)["text_output"]) == (200, "a b c")
    assert {servers.restarts(release, pod["metadata"]["name"]) for pod in release.pods()} == {0}


def test_a_guarded_way_in_keeps_out_what_ends_triton(
    release: Release, install: Install, embedded: None, row: Row
) -> None:
    row.fault = f"tensor of 4 TiB, gzip of 256 MiB, {REQUESTS} hostile requests, guarded ways in"
    row.mark = "neither reaches Triton; no server starts again; each good request is answered"
    route = {
        "enabled": True,
        "parentRefs": [{"name": "traefik", "namespace": "traefik"}],
        "hostnames": [f"route-{release.namespace}.test"],
    }
    install(
        replicas=1,
        models={"llama3-8b": None, hostile.MODEL: VICTIM},
        publicCalls=["generate", "generate_stream"],
        httpRoute=route,
    )
    ingress = door(release.place, release)
    through_route = dataclasses.replace(ingress, host=route["hostnames"][0])
    # A route of the chart takes the coding off, so that Triton sees bytes that are no JSON.
    expected = {ingress: b"Unsupported content-encoding", through_route: b"parse the request JSON"}
    for way, said in expected.items():
        coded = {"Content-Encoding": "gzip"}
        assert way.request("POST", path("infer"), killer())[0] == 404
        assert way.request("POST", path("infer"), BOMB, headers=coded)[0] == 404
        assert said in way.request("POST", path("generate"), BOMB, headers=coded)[1]
        whole(release, way)
    ways = [*expected]
    statuses = hostile.Tally()
    for number in range(REQUESTS):
        answer = through(ways[number % 2], number)
        statuses.add(answer)
        assert not answer.hung, hostile.make(SEED, number)
        if number % hostile.BLOCK == hostile.BLOCK - 1:
            whole(release, ways[0])
    classes = statuses.classes()
    row.measured = (
        f"404 for both; {classes[2]} x 2xx, {classes[4]} x 4xx, {classes[5]} x 5xx, "
        f"{classes[0]} closed; no restart"
    )
    assert statuses.count == REQUESTS
