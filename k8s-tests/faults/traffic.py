"""Steady traffic through the ingress while something breaks: plain calls and open streams.

Nothing is sent twice, so a request that was lost shows. A verdict demands a minimum of requests:
no failure among three requests says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from lib.offered_load import Load, Outcome, Record, infer, stream
from tools.ask import Door
from tools.wait import until

RATE = 12.0  # plain calls a second
STREAMS = 4  # streams open at any time
TOKENS = 5  # of a plain answer: 0.2 s with `servers.MODEL`
STREAM_TOKENS = 250  # 5 s
ENOUGH = 400


class Recorded(Protocol):
    """What keeps a record of the requests that it sends."""

    record: Record


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What was sent so far and how it went."""

    plain: Recorded
    streams: Recorded

    @property
    def calls(self) -> list[Outcome]:
        """Plain calls that ended."""
        return list(self.plain.record.outcomes)

    @property
    def streamed(self) -> list[Outcome]:
        """Streams that ended."""
        return list(self.streams.record.outcomes)

    def wait_for(self, count: int, *, since: float = 0.0) -> None:
        """Wait until so many plain calls that began after a Unix time have ended."""
        until(lambda: len(begun(self.calls, since)) >= count, seconds=180, every=0.1)

    def wait_until(self, at: float) -> None:
        """Go on until a Unix time."""
        until_time(at)

    def summary(self) -> str:
        """Return what a table says about it."""
        calls, streamed = self.calls, self.streamed
        return (
            f"{len(failed(calls))} of {len(calls)} calls failed, "
            f"{len(failed(streamed))} of {len(streamed)} streams broke"
        )

    def lost_nothing(self, *, calls: int = ENOUGH, streams: int = STREAMS) -> None:
        """Check that every call was answered and every stream went on to its last event.

        Raises:
            AssertionError: with the faults and when they came, or because the sample is too small.
        """
        assert len(self.calls) >= calls, f"only {len(self.calls)} calls, {calls} wanted"
        assert len(self.streamed) >= streams, f"only {len(self.streamed)} streams"
        # The text is ours: pytest explains only the asserts of test files.
        lost = [*describe(failed(self.calls)), *describe(failed(self.streamed))]
        assert not lost, "\n".join((self.summary(), *lost))


def until_time(at: float) -> None:
    """Go on until a Unix time."""
    until(lambda: time.time() >= at, seconds=max(0.0, at - time.time()) + 5, every=0.1)


def begun(outcomes: Sequence[Outcome], start: float, end: float = float("inf")) -> list[Outcome]:
    """Return the requests that were sent between two Unix times."""
    return [outcome for outcome in outcomes if start <= outcome.start < end]


def failed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the requests that were not answered."""
    return [outcome for outcome in outcomes if outcome.fault]


def success(outcomes: Sequence[Outcome]) -> float:
    """Return the answered part, 0 to 1.

    Raises:
        AssertionError: when there are none.
    """
    assert outcomes, "no request was sent in this time"
    return 1 - len(failed(outcomes)) / len(outcomes)


def describe(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line for each request: when it was sent, how long it took, what went wrong."""
    return [
        f"{time.strftime('%H:%M:%S', time.gmtime(o.start))} +{o.seconds:.2f} s: {o.fault}"
        for o in outcomes
    ]


@contextmanager
def running(
    door: Door, model: str, *, rate: float = RATE, streams: int = STREAMS, timeout: float = 30.0
) -> Iterator[Traffic]:
    """Send until the block ends, then wait for what is in flight.

    The block begins when the first calls were answered and all streams are open.
    """
    words = {"host": door.host, "text": "one two three"}
    call = infer(door.address, door.port, model, max_tokens=TOKENS, **words)
    flow = stream(door.address, door.port, model, max_tokens=STREAM_TOKENS, **words)
    with ExitStack() as stack:
        plain = stack.enter_context(Load([call], timeout=timeout))
        flows = stack.enter_context(Load([flow], timeout=timeout))
        made = Traffic(plain=plain, streams=flows)
        plain.rate(rate)
        flows.clients(streams)
        made.wait_for(int(2 * rate))
        yield made
