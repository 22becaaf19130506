"""One request each: whole over HTTP or gRPC, as a stream of tokens, or by OpenAI's API.

A client sends one case and fills in an Outcome; it raises nothing for what a server or a network
does. A connection is made for each request, as distinct users would, so that a Service spreads them
over its pods and none is pinned to an old one; `keep_alive` reuses them.
"""

from __future__ import annotations

from collections.abc import Iterable

from triton_load.clients.base import Client, Target
from triton_load.clients.openai_api import OpenAIClient, base_path, request_of
from triton_load.clients.triton_grpc import GrpcClient, check_grpc, check_parameters, prepare_grpc
from triton_load.clients.triton_http import InferClient, StreamClient, check_json
from triton_load.data import Case

__all__ = [
    "CLIENTS",
    "Client",
    "Target",
    "base_path",
    "check",
    "check_grpc",
    "make",
    "prepare_grpc",
]

CLIENTS = ("infer", "stream", "grpc", "openai")


def make(kind: str, target: Target) -> Client:
    """Return the client of a kind; see `CLIENTS`."""
    if kind == "infer":
        return InferClient(target)
    if kind == "stream":
        return StreamClient(target)
    if kind == "openai":
        return OpenAIClient(target)
    return GrpcClient(target)


def check(kind: str, cases: Iterable[Case]) -> None:
    """Check that the client of a kind can send these cases as they are.

    Raises:
        LoadTestError: It cannot; the text names the case and the field.
    """
    for case in cases:
        if kind == "grpc":
            check_parameters(case)
        elif kind == "openai":
            request_of(case)
        else:
            check_json(case)
        if kind == "stream":
            case.fields()
