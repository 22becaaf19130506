"""The chart's own way to GPU nodes: resource and tolerations as they are by default.

On the embedded cluster a device plugin gives out GPUs behind which is no hardware; label, taint,
scheduling and counting are those of a GPU node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lib.small import values
from tools import helm, install, place
from tools.helm import Release
from tools.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

GPU = "nvidia.com/gpu"
ABSENT = "nvidia.com/mig-7g.80gb"


@pytest.fixture
def gpu_nodes(here: place.Place) -> dict[str, int]:
    """The nodes with GPUs, and how many each gives out."""
    nodes = helm.get(here, "default", "nodes")["items"]
    found = {
        node["metadata"]["name"]: int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes
    }
    found = {name: count for name, count in found.items() if count}
    if not found:
        pytest.skip("no node of this cluster gives out GPUs")
    return found


def with_gpus(here: place.Place, release: Release, **gpu: Any) -> dict[str, Any]:
    return values(here, f"{release.namespace}.test") | {"gpu": {"count": 1, **gpu}}


def test_a_server_gets_a_gpu_on_a_gpu_node_and_answers(
    here: place.Place, make_release: Callable[..., Release], gpu_nodes: dict[str, int]
) -> None:
    release = make_release()

    release.apply(with_gpus(here, release))

    (pod,) = release.pods()
    assert pod["spec"]["nodeName"] in gpu_nodes
    assert "nodeSelector" not in pod["spec"], "the GPU alone binds the pod"
    node = helm.get(here, "default", "node", pod["spec"]["nodeName"])
    if here.embedded:
        assert GPU in {taint["key"] for taint in node["spec"]["taints"]}
    gpus = {
        container["name"]: container["resources"]["limits"].get(GPU)
        for container in pod["spec"]["containers"]
    }
    assert gpus == {"triton": "1", "openai": None}
    inside = (
        "kubectl",
        "-n",
        release.namespace,
        "exec",
        pod["metadata"]["name"],
        "-c",
        "triton",
        "--",
    )
    visible = helm.run(here, *inside, "printenv", "NVIDIA_VISIBLE_DEVICES").strip()
    assert len(visible.split(",")) == 1
    assert visible not in ("", "all", "none", "void")
    outputs = install.door(here, release).infer("simulated", "one two", max_tokens=2)
    assert outputs["text_output"].split() == ["one", "two"]


def test_a_server_that_wants_a_gpu_that_no_node_has_waits_and_kubernetes_says_why(
    here: place.Place, make_release: Callable[..., Release]
) -> None:
    release = make_release()
    release.apply(with_gpus(here, release, resourceName=ABSENT), wait=False)

    def says_why() -> None:
        (pod,) = release.pods()
        conditions = {each["type"]: each for each in pod["status"].get("conditions", [])}
        assert conditions["PodScheduled"]["status"] == "False"
        assert f"Insufficient {ABSENT}" in conditions["PodScheduled"]["message"]

    until(says_why, seconds=60)
