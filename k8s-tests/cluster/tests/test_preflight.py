"""What is missing is said in one sentence that names the fix, and nothing is changed before."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import __main__ as command
from cluster import binaries, images, network, preflight

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def fit_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a fault, and with an empty cache; each test breaks one thing."""
    monkeypatch.setenv("TRITON_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(binaries, "go_version", lambda: "go1.99.0")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(900e9, 0, 900e9))
    monkeypatch.setattr(preflight, "memory_bytes", lambda: 16e9)
    monkeypatch.setattr(preflight, "missing_packages", list)
    monkeypatch.setattr(network, "namespaces", list)
    monkeypatch.setattr(preflight, "routes", lambda: ["default via 192.0.2.1 dev eth0"])
    return tmp_path


def only_fault() -> str:
    """Return the one sentence that is said."""
    (sentence,) = preflight.faults()
    assert "\n" not in sentence
    return sentence


def test_a_fit_machine_has_no_fault() -> None:
    assert preflight.faults() == []


def test_without_root_it_names_sudo_and_the_way_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert "root is needed" in only_fault()
    assert "use sudo, or set KUBECONFIG" in only_fault()


def test_without_go_it_names_the_version_and_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binaries, "go_version", lambda: None)

    assert only_fault().startswith("Go 1.")
    assert "https://go.dev/dl/" in only_fault()


def test_with_every_program_built_no_go_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "go_version", lambda: None)
    monkeypatch.setattr(binaries, "is_built", lambda _: True)

    assert preflight.faults() == []


def test_an_addon_that_is_asked_for_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    core = {component.name for component in binaries.select(["core"])}
    monkeypatch.setattr(binaries, "go_version", lambda: None)
    monkeypatch.setattr(binaries, "is_built", lambda component: component.name in core)

    assert preflight.faults() == []
    assert "needed to build prometheus-operator" in preflight.faults(["core", "monitoring"])[0]


def test_too_little_disk_is_named_with_both_sizes_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(binaries, "is_built", lambda _: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(20e9, 17e9, 3e9))

    assert f"{preflight.RUN_GIGABYTES} GB of free disk are needed" in only_fault()
    assert "3 GB are there: free some, or set TRITON_CACHE to another disk" in only_fault()


def test_too_little_memory_is_named_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "memory_bytes", lambda: 2e9)

    least = preflight.MEMORY_GIGABYTES
    assert f"{least} GB of memory are needed, this machine has 2: use a larger one" in only_fault()


@pytest.mark.parametrize("route", ["198.18.0.0/15 dev tun0", "198.19.7.0/24 via 10.0.0.1 dev eth1"])
def test_a_range_that_is_in_use_is_named_with_the_command_that_frees_it(
    monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(preflight, "routes", lambda: ["default via 192.0.2.1", route])

    assert "198.18.0.0/15" in only_fault()
    assert f"`ip route del {route.split()[0]}`" in only_fault()


def test_our_own_routes_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "namespaces", lambda: ["tk-fabric"])
    monkeypatch.setattr(preflight, "routes", lambda: ["198.18.254.0/23 dev tk-host"])

    assert preflight.faults() == []


def test_without_apt_the_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "missing_packages", lambda: ["containerd", "ipset"])
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "apt-get" else name)

    assert "install these" in only_fault()
    assert only_fault().endswith("containerd, ipset")


def test_up_says_every_fault_ends_with_2_and_changes_nothing(
    fit_machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was done on an unfit machine")

    for module, name in ((binaries, "ensure"), (images, "archives"), (network, "up")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(subprocess, "run", never)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "memory_bytes", lambda: 2e9)
    monkeypatch.setattr("sys.argv", ["cluster", "up"])

    assert command.main() == 2

    said = capsys.readouterr().err
    assert "root is needed" in said
    assert "GB of memory are needed" in said
    assert list(fit_machine.iterdir()) == []
