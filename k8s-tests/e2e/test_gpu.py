"""The chart's own way to GPU nodes: resource, node selector and tolerations as they are by default.

On the embedded cluster a device plugin gives out GPUs behind which is no hardware; label, taint,
scheduling and counting are those of a GPU node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support import helm, install, place
from support.helm import Release
from support.small import values
from support.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GPU = "nvidia.com/gpu"


@pytest.fixture
def gpu_nodes(here: place.Place) -> dict[str, int]:
    """The nodes that the chart takes by default, and how many GPUs each gives out."""
    nodes = helm.get(here, "default", "nodes", "-l", f"{GPU}.present=true")["items"]
    found = {
        node["metadata"]["name"]: int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes
    }
    if not any(found.values()):
        pytest.skip(f"no node of this cluster has the label {GPU}.present and gives out GPUs")
    return found


def with_gpus(here: place.Place, release: Release, count: int) -> dict[str, Any]:
    return values(here, f"{release.namespace}.test") | {"gpu": {"count": count}}


def test_a_server_gets_a_gpu_on_a_gpu_node_and_answers(
    here: place.Place, make_release: Callable[..., Release], gpu_nodes: dict[str, int]
) -> None:
    release = make_release()

    release.apply(with_gpus(here, release, 1))

    (pod,) = release.pods()
    assert pod["spec"]["nodeName"] in gpu_nodes
    assert pod["spec"]["nodeSelector"] == {f"{GPU}.present": "true"}
    node = helm.get(here, "default", "node", pod["spec"]["nodeName"])
    if here.embedded:
        assert GPU in {taint["key"] for taint in node["spec"]["taints"]}
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"][GPU] == "1"
    inside = ("kubectl", "-n", release.namespace, "exec", pod["metadata"]["name"], "--")
    visible = helm.run(here, *inside, "printenv", "NVIDIA_VISIBLE_DEVICES").strip()
    assert len(visible.split(",")) == 1
    assert visible not in ("", "all", "none", "void")
    outputs = install.door(here, release).infer("simulated", "one two", max_tokens=2)
    assert outputs["text_output"].split() == ["one", "two"]


def test_a_server_that_wants_more_gpus_than_a_node_has_waits_and_kubernetes_says_why(
    here: place.Place, make_release: Callable[..., Release], gpu_nodes: dict[str, int]
) -> None:
    release = make_release()
    release.apply(with_gpus(here, release, max(gpu_nodes.values()) + 1), wait=False)

    def says_why() -> None:
        (pod,) = release.pods()
        conditions = {each["type"]: each for each in pod["status"].get("conditions", [])}
        assert conditions["PodScheduled"]["status"] == "False"
        assert f"Insufficient {GPU}" in conditions["PodScheduled"]["message"]

    until(says_why, seconds=60)
