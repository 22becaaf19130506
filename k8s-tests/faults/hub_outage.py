"""The mirror of the Hub in the embedded cluster, ended or made to fail on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from cluster import plan, services
from tools.wait import until

_VARIABLE = "HUB_FAULTS"  # read by tools.hub_mirror


@contextlib.contextmanager
def hub_down() -> Iterator[None]:
    """End the mirror in the block."""
    _end()
    try:
        yield
    finally:
        services.start_hub()


@contextlib.contextmanager
def hub_that(faults: str) -> Iterator[None]:
    """Let downloads fail in the block, in the words of `tools.hub_mirror.server.Faults`."""
    _end()
    os.environ[_VARIABLE] = faults
    try:
        services.start_hub()
        yield
    finally:
        del os.environ[_VARIABLE]
        _end()
        services.start_hub()


def _end() -> None:
    os.kill(int((plan.state() / "hub.pid").read_text()), signal.SIGTERM)
    until(lambda: not services.answers(plan.HUB_PORT), seconds=20, every=0.2)
