from __future__ import annotations

import socket
from typing import Any

import gevent
import gevent.socket
import pytest

from triton_load import resolver


class Dns:
    """Knows a name with addresses of two families, and counts the questions."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    def getaddrinfo(self, host: str, port: int, *rest: Any) -> list[Any]:
        self.asked += 1
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        new = [(socket.AF_INET6, 1, 6, "", (f"::{number}", port, 0, 0)) for number in range(4)]
        old = [(socket.AF_INET, 1, 6, "", (f"10.0.0.{number}", port)) for number in range(4)]
        return [*new, *old]

    def gethostbyname(self, host: str) -> str:
        return "10.0.0.1"


def test_a_name_is_asked_for_once_in_the_time_and_again_after_it() -> None:
    dns = Dns()
    cached = resolver.CachingResolver(dns, seconds=3600)
    for _ in range(5):
        cached.getaddrinfo("triton", 8000, 0, socket.SOCK_STREAM)
    assert dns.asked == 1
    cached.getaddrinfo("triton", 8001, 0, socket.SOCK_STREAM)
    assert dns.asked == 2
    brief = resolver.CachingResolver(dns, seconds=0.0)
    brief.getaddrinfo("triton", 8000)
    brief.getaddrinfo("triton", 8000)
    assert dns.asked == 4


def test_connections_spread_over_the_addresses_and_keep_the_order_of_families() -> None:
    dns = Dns()
    cached = resolver.CachingResolver(dns, seconds=3600)
    found = [cached.getaddrinfo("triton", 8000) for _ in range(100)]
    assert {addresses[0][4][0] for addresses in found} == {f"::{number}" for number in range(4)}
    assert all(sorted(addresses) == sorted(dns.getaddrinfo("triton", 8000)) for addresses in found)
    families = [[address[0] for address in addresses] for addresses in found]
    assert families == [[socket.AF_INET6] * 4 + [socket.AF_INET] * 4] * 100


def test_a_failure_is_told_and_not_remembered() -> None:
    dns = Dns()
    cached = resolver.CachingResolver(dns, seconds=3600)
    dns.fails = True
    with pytest.raises(socket.gaierror):
        cached.getaddrinfo("triton", 8000)
    dns.fails = False
    assert cached.getaddrinfo("triton", 8000)


def test_it_stands_before_gevents_own_and_leaves_it_the_rest() -> None:
    hub = gevent.get_hub()
    before = hub.resolver
    try:
        resolver.install()
        first = hub.resolver
        resolver.install()
        assert hub.resolver is first
        assert isinstance(first, resolver.CachingResolver)
        assert gevent.socket.getaddrinfo("127.0.0.1", 80)[0][4] == ("127.0.0.1", 80)
        assert resolver.CachingResolver(Dns()).gethostbyname("triton") == "10.0.0.1"
    finally:
        hub.resolver = before
