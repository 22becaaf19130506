"""Which image a release on the cluster in use gets: the one that was pushed last, by its digest.

A tag alone would leave the pods on what their node pulled under it before.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

from tools.place import VERSION, Place

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


def values(here: Place, repository: str) -> dict[str, Any]:
    """Return the key `image` of a chart's values.

    On a cluster of somebody else's the tag names the image, as it was pushed there.

    Raises:
        AssertionError: the embedded cluster's registry does not have the image.
    """
    chosen = {"registry": here.pull, "repository": repository, "tag": VERSION}
    return chosen | {"digest": _digest(here, repository)} if here.embedded else chosen


def reference(here: Place, repository: str) -> str:
    """Return the same image as one word, for a pod that no chart makes."""
    chosen = values(here, repository)
    version = f"@{chosen['digest']}" if "digest" in chosen else f":{chosen['tag']}"
    return f"{here.pull}/{repository}{version}"


def _digest(here: Place, repository: str) -> str:
    try:
        return manifest_digest(f"http://{here.push}/v2/{repository}/manifests/{VERSION}")
    except urllib.error.HTTPError as error:
        raise AssertionError(
            f"the registry has no {repository}:{VERSION} ({error.code}): run make up"
        ) from None


def manifest_digest(url: str) -> str:
    """Return the digest of a manifest in a registry.

    Raises:
        HTTPError: there is none.
    """
    headers = {"Accept": ", ".join(_MANIFESTS)}
    asked = urllib.request.Request(url, headers=headers, method="HEAD")  # noqa: S310
    with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310
        return str(answer.headers["Docker-Content-Digest"])
