"""Processes that die, hang or eat too much: their pod leaves the rotation and comes back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults import servers, traffic
from tools import helm
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door
from tools.wait import until
from triton_hf.models.pbtxt import model_config

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(420)]

Install = Callable[..., dict[str, Any]]
OUT_SECONDS = 60.0
# What a proxy may need to hear that an endpoint is gone.
HEARD_SECONDS = 3.0
OTHER = "other"
WINDOW = 60.0
TAIL = 15.0


def victim_of(release: Release) -> str:
    return str(min(pod["metadata"]["name"] for pod in release.pods()))


def wait_out_of_rotation(release: Release, victim: str, *, since: float) -> float:
    """Return the seconds since a Unix time after which a pod gets no requests or was restarted."""
    until(
        lambda: victim not in servers.in_rotation(release) or servers.restarts(release, victim) > 0,
        seconds=OUT_SECONDS - (time.time() - since),
        every=0.2,
    )
    return time.time() - since


@pytest.mark.slow
@pytest.mark.parametrize("stub", [servers.MODEL, f"{servers.MODEL}_stream"])
def test_a_pod_whose_stub_was_killed_leaves_the_rotation_and_comes_back(
    release: Release, install: Install, row: Row, stub: str
) -> None:
    row.fault = f"kill -9 the stub of `{stub}`"
    row.mark = "out of rotation or restarted <= 60 s; the pod's other models answer; then 0 failed"
    install(models={"llama3-8b": None, servers.MODEL: servers.SIMULATED, OTHER: servers.SIMULATED})
    victim = victim_of(release)
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        killed = time.time()
        servers.signal_stub(release, victim, stub, signal.SIGKILL)
        assert "text_output" in servers.ask_inside(release, victim, OTHER, "still here")
        took = wait_out_of_rotation(release, victim, since=killed)
        heard = killed + took + HEARD_SECONDS
        until(lambda: servers.back(release, victim, restarts_before=0), seconds=150)
        load.wait_for(traffic.ENOUGH // 2, since=heard)
    after = traffic.begun(load.calls, heard), traffic.begun(load.streamed, heard)
    row.measured = (
        f"out of rotation after {took:.0f} s; {len(traffic.failed(after[0]))} of {len(after[0])} "
        f"calls and {len(traffic.failed(after[1]))} of {len(after[1])} streams failed after that"
    )
    assert traffic.describe(traffic.failed(after[0])) == []
    assert traffic.describe(traffic.failed(after[1])) == []


def kill_server(release: Release, victim: str) -> None:
    servers.kill_server(release, victim)


def delete_at_once(release: Release, victim: str) -> None:
    words = ("delete", "pod", victim, "--grace-period=0", "--force")
    helm.run(release.place, "kubectl", "-n", release.namespace, *words)


@pytest.mark.parametrize(
    ("hit", "name"),
    [
        (kill_server, "kill -9 tritonserver"),
        pytest.param(delete_at_once, "pod delete with grace 0", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_is_killed_costs_what_it_had_in_flight_and_then_nothing(
    release: Release,
    install: Install,
    embedded: None,
    row: Row,
    hit: Callable[[Release, str], None],
    name: str,
) -> None:
    row.fault = name
    row.mark = (
        ">= 90 % success in the next 60 s, 100 % after start + 15 s; only what was begun before "
        "the victim left the rotation is lost, and nothing on the peer"
    )
    install()
    victim = victim_of(release)
    (peer,) = {pod["metadata"]["name"] for pod in release.pods()} - {victim}
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        killed = time.time()
        hit(release, victim)
        left = killed + wait_out_of_rotation(release, victim, since=killed)
        servers.wait_settled(release, 2)
        started = time.time()
        load.wait_until(max(killed + WINDOW, started + TAIL))
        load.wait_for(100, since=started + TAIL)
    window = traffic.begun(load.calls, killed, killed + WINDOW)
    tail = traffic.begun(load.calls, started + TAIL)
    late = traffic.begun([*load.calls, *load.streamed], left + HEARD_SECONDS)
    row.measured = (
        f"{100 * traffic.success(window):.1f} % of {len(window)}, then "
        f"{100 * traffic.success(tail):.1f} % of {len(tail)}; out of rotation after "
        f"{left - killed:.1f} s and 0 of {len(late)} failed that were begun {HEARD_SECONDS:.0f} s "
        f"later; serving again after {started - killed:.0f} s"
    )
    assert traffic.describe(traffic.failed(late)) == []
    assert (servers.failures(release, peer), servers.restarts(release, peer)) == (0, 0)
    assert len(window) >= traffic.ENOUGH
    assert traffic.success(window) >= 0.9, traffic.describe(traffic.failed(window))
    assert traffic.describe(traffic.failed(tail)) == []


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False], ids=["with work queued", "idle, then asked"])
def test_a_pod_whose_stub_hangs_leaves_the_rotation_and_comes_back(
    release: Release, install: Install, row: Row, busy: bool
) -> None:
    row.fault = f"SIGSTOP the stub, {'with work queued' if busy else 'idle, then asked'}"
    row.mark = (
        "out of rotation or restarted <= 60 s after it got work; the pod's other models answer; "
        "then 0 failed"
    )
    install(models={"llama3-8b": None, servers.MODEL: servers.SIMULATED, OTHER: servers.SIMULATED})
    victim = victim_of(release)
    if not busy:
        servers.signal_stub(release, victim, servers.MODEL, signal.SIGSTOP)
    with traffic.running(door(release.place, release), servers.MODEL, timeout=10) as load:
        stopped = time.time()
        if busy:
            servers.signal_stub(release, victim, servers.MODEL, signal.SIGSTOP)
        assert "text_output" in servers.ask_inside(release, victim, OTHER, "still here")
        took = wait_out_of_rotation(release, victim, since=stopped)
        heard = stopped + took + HEARD_SECONDS
        until(lambda: servers.back(release, victim, restarts_before=0), seconds=180)
        load.wait_for(traffic.ENOUGH // 2, since=heard)
    after = traffic.begun(load.calls, heard)
    row.measured = (
        f"out of rotation after {took:.0f} s; {len(traffic.failed(after))} of {len(after)} "
        "calls failed after that"
    )
    assert traffic.describe(traffic.failed(after)) == []


@pytest.mark.slow
def test_servers_without_work_are_not_restarted(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "no request for 150 s"
    row.mark = "no restart, always in rotation"
    install()
    pods = {pod["metadata"]["name"] for pod in release.pods()}
    end = time.time() + 150

    def whole() -> bool:
        if servers.in_rotation(release) != pods or any(servers.restarts(release, p) for p in pods):
            pytest.fail("an idle server left the rotation or was restarted")
        return time.time() > end

    until(whole, seconds=200, every=2)
    row.measured = f"{len(pods)} servers, no restart"


HUNGRY = "hungry"
_HUNGRY = '''"""Takes a gibibyte when it is told to eat."""

from triton_hf.backend.tensors import read_inputs
from triton_hf.backend.text_model import TextModel


class TritonPythonModel(TextModel):
    def execute(self, requests):
        if any(read_inputs(request)["user_message"] == [b"eat"] for request in requests):
            self.eaten = b"x" * (1 << 30)
        super().execute(requests)
'''


@pytest.mark.slow
def test_a_stub_over_the_memory_limit_is_named_in_the_pods_state_and_the_peer_serves_on(
    release: Release, install: Install, row: Row
) -> None:
    """The state says it, and no event does: the kubelet writes none for a container's own limit."""
    row.fault = "stub over the memory limit"
    row.mark = (
        "restarted, the pod's state says OOMKilled (the kubelet writes no event for it); "
        "0 failed once out of rotation"
    )
    config = model_config({"engine": "simulated", "slots": "4"})
    install(**servers.extra_model(HUNGRY, config, _HUNGRY))
    victim = victim_of(release)
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        eaten = time.time()
        with pytest.raises(helm.CommandFailedError):
            servers.ask_inside(release, victim, HUNGRY, "eat")
        took = wait_out_of_rotation(release, victim, since=eaten)
        heard = eaten + took + HEARD_SECONDS
        until(lambda: servers.back(release, victim, restarts_before=0), seconds=180)
        load.wait_for(traffic.ENOUGH // 2, since=heard)
    ended = servers.container(release, victim)["lastState"]["terminated"]
    after = traffic.begun(load.calls, heard)
    row.measured = (
        f"{ended['reason']}, out of rotation after {took:.0f} s; {len(traffic.failed(after))} of "
        f"{len(after)} calls failed after that"
    )
    assert ended["reason"] == "OOMKilled"
    assert traffic.describe(traffic.failed(after)) == []
