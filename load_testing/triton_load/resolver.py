"""Names of hosts, looked up every few seconds instead of for each connection.

gevent looks each name up in a thread of its own, which costs a quiet machine two wake-ups: 1.8 ms
of each time to first token, more than all else that a client adds. In a cluster every look-up is
several questions to its DNS besides.
"""

from __future__ import annotations

import random
import time
from typing import Any

from triton_load import locust_bridge

SECONDS = 5.0
_Key = tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]


class CachingResolver:
    """A resolver of gevent that remembers addresses for a few seconds.

    A name with several addresses gives those of a family in another order each time, as a DNS
    would, so that connections spread. Failures are not remembered.
    """

    def __init__(self, resolver: Any, *, seconds: float = SECONDS) -> None:
        """Ask this resolver for what is not known, or was asked longer ago."""
        self._resolver = resolver
        self._seconds = seconds
        self._known: dict[_Key, tuple[float, list[Any]]] = {}

    def getaddrinfo(self, *args: Any, **kwargs: Any) -> list[Any]:
        """`socket.getaddrinfo`, of now or of a few seconds ago.

        Raises:
            socket.gaierror: The name has no address.
        """
        key = (args, tuple(sorted(kwargs.items())))
        until, found = self._known.get(key, (0.0, []))
        if time.monotonic() >= until:
            found = list(self._resolver.getaddrinfo(*args, **kwargs))
            self._known[key] = (time.monotonic() + self._seconds, found)
        families = [each[0] for each in found]
        shuffled = random.sample(found, len(found))
        return sorted(shuffled, key=lambda each: families.index(each[0]))

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the other resolver."""
        return getattr(self._resolver, name)


def install() -> None:
    """Let this process look names up like that; once or more."""
    locust_bridge.wrap_resolver(CachingResolver)
