"""Who reaches what: everybody else is refused, by the network or by the server."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from cluster import plan
from lib import client
from lib.small import NODES, TRAEFIK, values
from tools import helm, install, place
from tools.ask import question
from tools.helm import Release
from tools.install import door, grpc_address
from tools.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
HUB = f"{plan.HUB_HOST}:{plan.HUB_PORT}"
KEY = "a-client"
API = "kubernetes.default.svc:443"
_REST = "import time; print('here', flush=True); time.sleep(3600)"
# Name look-ups are allowed to every pod here; what is asked is the connection.
_CONNECT = """
import json, socket, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    address = socket.gethostbyname(host)
    try:
        socket.create_connection((address, int(port)), timeout=3).close()
        found[target] = True
    except (TimeoutError, ConnectionRefusedError):
        found[target] = False
print(json.dumps(found))
"""

_GET = """
import sys, urllib.error, urllib.request
name, value = sys.argv[2].split("=", 1)
try:
    asked = urllib.request.Request(sys.argv[1], headers={name: value})
    print(urllib.request.urlopen(asked, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass(frozen=True)
class Net:
    """A release whose policy names the gateway's namespace, and pods beside it.

    Attributes:
        other: a namespace that the policy does not name.
        watching: the namespace that the policy names for metrics.
    """

    release: Release
    other: str
    watching: str

    def opens(self, namespace: str, pod: str, *targets: str) -> dict[str, bool]:
        """Return to which host:port a pod can connect."""
        said = client.python(self.release.place, namespace, pod, _CONNECT, *targets)
        return dict(json.loads(said))

    def ports(self, namespace: str, pod: str) -> set[str]:
        """Return the server's ports to which a pod can connect."""
        (server,) = self.release.pods()
        targets = {name: f"{server['status']['podIP']}:{port}" for name, port in PORTS.items()}
        found = self.opens(namespace, pod, *targets.values())
        return {name for name, target in targets.items() if found[target]}


@pytest.fixture(scope="module")
def net(here: place.Place) -> Iterator[Net]:
    if not here.embedded:
        pytest.skip("needs to know where gateway and Hub are; the embedded cluster's are known")
    word = uuid.uuid4().hex[:5]
    names = [f"policy-{word}", f"policy-other-{word}", f"policy-watching-{word}"]
    for name in names:
        install.ensure_namespace(here, name)
    own, other, watching = names
    release = Release(place=here, namespace=own, name="closed")
    chosen = values(here, f"{own}.test")
    label = {"kubernetes.io/metadata.name": watching}
    # The nodes, because this machine asks gRPC by a port of theirs.
    chosen["service"] = {"type": "NodePort"}
    chosen["server"] = {"apiKey": {"existingSecret": "keys"}}
    chosen["networkPolicy"] = {
        "gateway": [TRAEFIK, NODES],
        "monitoring": [{"namespaceSelector": {"matchLabels": label}}],
    }
    try:
        helm.run(
            here,
            *("kubectl", "-n", own, "create", "secret", "generic", "keys"),
            f"--from-literal=api-key={KEY}",
        )
        release.apply(chosen)
        sync = dict(pair.split("=") for pair in release.selector("model-sync").split(","))
        sync["app.kubernetes.io/name"] = "triton"
        for namespace, name, labels in (
            (own, "stranger", {}),
            (own, "load-test", client.LOAD_TEST),
            (own, "syncing", sync),
            (other, "stranger", {}),
            (other, "load-test", client.LOAD_TEST),
            (watching, "stranger", {}),
        ):
            pod = client.manifest(here, name, _REST, labels=labels)
            client.start(here, namespace, pod, says="here")
        yield Net(release, other, watching)
    finally:
        helm.run(here, "kubectl", "delete", "namespace", *names, "--wait=false")


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 403), ({"x-api-key": "guessed"}, 403), ({"x-api-key": KEY}, 200)]
)
def test_the_gateway_reaches_the_servers_and_an_api_key_opens_inference(
    net: Net, headers: dict[str, str], status: int
) -> None:
    entrance = door(net.release.place, net.release)
    body = question("one two", max_tokens=2)
    path = "/v2/models/simulated/infer"
    assert entrance.request("POST", path, body, headers=headers)[0] == status
    assert entrance.request("GET", "/v2/models/simulated/ready", headers=headers)[0] == 200


def admin_key(release: Release) -> str:
    """Return the value of the header that opens the admin APIs."""
    secret = helm.get(release.place, release.namespace, "secret", f"{release.name}-triton-admin")
    return base64.b64decode(secret["data"]["header-value"]).decode()


def test_admin_apis_want_their_header_over_grpc_in_the_cluster_too(net: Net) -> None:
    address = grpc_address(net.release)
    opened = {"triton-grpc-protocol-triton-admin-key": admin_key(net.release)}
    with grpcclient.InferenceServerClient(address) as triton:
        for headers in (None, {"triton-grpc-protocol-triton-admin-key": "guessed"}):
            with pytest.raises(InferenceServerException, match="restricted"):
                triton.get_model_repository_index(headers=headers)
        found = triton.get_model_repository_index(headers=opened)
    assert {model.name for model in found.models} == {"simulated", "simulated_stream"}


def test_admin_apis_want_their_header_from_a_pod_that_may_call(net: Net) -> None:
    (server,) = net.release.pods()
    url = f"http://{server['status']['podIP']}:8000/v2/models/simulated/config"

    def status(key: str) -> int:
        words = (net.release.namespace, "load-test", _GET, url, f"triton-admin-key={key}")
        return int(client.python(net.release.place, *words))

    assert [status("guessed"), status(admin_key(net.release))] == [403, 200]


def test_a_load_test_of_the_same_namespace_reaches_http_and_grpc(net: Net) -> None:
    def check() -> None:
        assert net.ports(net.release.namespace, "load-test") == {"http", "grpc"}

    until(check, seconds=30)


def test_monitoring_reaches_the_metrics_and_nothing_else(net: Net) -> None:
    def check() -> None:
        assert net.ports(net.watching, "stranger") == {"metrics"}

    until(check, seconds=30)


@pytest.mark.parametrize("name", ["stranger", "load-test"])
def test_a_pod_of_another_namespace_is_refused_whatever_its_labels(net: Net, name: str) -> None:
    until(lambda: net.ports(net.other, name) == set(), seconds=30)


def test_a_pod_of_the_same_namespace_is_refused(net: Net) -> None:
    until(lambda: net.ports(net.release.namespace, "stranger") == set(), seconds=30)


def test_a_server_reaches_neither_the_hub_nor_the_api_server(net: Net) -> None:
    (server,) = net.release.pods()
    name = server["metadata"]["name"]
    assert net.opens(net.release.namespace, name, HUB, API) == {HUB: False, API: False}


def test_model_sync_reaches_the_hub_and_not_the_api_server(net: Net) -> None:
    def check() -> None:
        found = net.opens(net.release.namespace, "syncing", HUB, API)
        assert found == {HUB: True, API: False}

    until(check, seconds=30)


def test_a_pod_without_a_policy_reaches_hub_and_api_server(net: Net) -> None:
    """So that the refusals above are the policy's."""
    assert net.opens(net.other, "stranger", HUB, API) == {HUB: True, API: True}
