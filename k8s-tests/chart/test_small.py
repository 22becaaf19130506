"""The releases that the tests themselves install render on clusters of every sort."""

from __future__ import annotations

import pytest

from chart.rendering import render
from lib import small
from tools import place

pytestmark = pytest.mark.chart


def test_two_servers_share_a_node_where_the_store_is_for_one() -> None:
    there = place.foreign("/nowhere", registry="registry.example.com")
    chosen = small.several(small.values(there, "x.test"), "rel", 2)

    deployment = render(chosen).one("Deployment")

    assert deployment["spec"]["replicas"] == 2
    template = deployment["spec"]["template"]
    ((rule,),) = template["spec"]["affinity"]["podAffinity"].values()
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    assert rule["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
