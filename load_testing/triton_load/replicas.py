"""How many servers are ready, asked of the cluster's DNS: no rights and no API are needed."""

from __future__ import annotations

import socket


def count(host: str) -> int | None:
    """Return the number of addresses of a headless Service, which are its ready pods.

    None when the name is not known: a headless Service without a ready pod has no address, and
    neither has one that does not exist. Answers may be as old as the DNS server's cache allows,
    5 s by default for names of the cluster.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    # With two address families each pod has an address in both.
    families = {family: {a[4][0] for a in found if a[0] == family} for family, *_ in found}
    return max(len(addresses) for addresses in families.values())
