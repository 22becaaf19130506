"""How many connections a client makes, seen from a gRPC server that knows no model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from triton_load.clients.base import Target
from triton_load.clients.triton_grpc import GrpcClient
from triton_load.data import Case
from triton_load.measure import Outcome
from triton_load.schema import Model

CASE = Case(name="one", weight=1.0, inputs=(), parameters={})


class Peers(grpc.GenericRpcHandler):
    """Notes from where each call comes, and refuses it."""

    def __init__(self) -> None:
        """Nobody has called."""
        self.seen: list[str] = []

    def service(self, handler_call_details: Any) -> Any:
        def refuse(request: bytes, context: Any) -> None:
            self.seen.append(context.peer())
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def server() -> Iterator[tuple[Peers, str]]:
    peers = Peers()
    running = grpc.server(ThreadPoolExecutor(2), handlers=[peers])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield peers, f"127.0.0.1:{port}"
    running.stop(None).wait()


@pytest.mark.parametrize(("keep_alive", "connections"), [(False, 5), (True, 1)])
def test_each_grpc_call_has_a_connection_of_its_own_unless_they_are_kept(
    server: tuple[Peers, str], keep_alive: bool, connections: int
) -> None:
    peers, address = server
    model = Model(name="m", batch=0, inputs={}, outputs=(), source="here")
    target = Target(
        host="http://127.0.0.1:1",
        grpc=address,
        model=model,
        stream="m_stream",
        timeout=30.0,
        keep_alive=keep_alive,
        insecure=False,
        headers={},
    )
    client = GrpcClient(target)
    for _ in range(5):
        outcome = Outcome(case="one", started=time.perf_counter())
        client.send(CASE, outcome)
        assert outcome.error == ("gRPC UNIMPLEMENTED", "no such call")
    client.close()
    assert (len(peers.seen), len(set(peers.seen))) == (5, connections)
