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
    monkeypatch.setattr(preflight, "image_is_built", lambda: False)
    monkeypatch.setattr(preflight, "device_of", lambda _: 1)
    monkeypatch.setattr(network, "namespaces", list)
    monkeypatch.setattr(preflight, "routes", lambda: ["default via 192.0.2.1 dev eth0"])
    return tmp_path


def only_fault() -> str:
    """Return the one sentence that is said."""
    (sentence,) = preflight.faults(make_up=True)
    assert "\n" not in sentence
    return sentence


def test_a_fit_machine_has_no_fault() -> None:
    assert preflight.faults(make_up=True) == []


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

    (sentence,) = preflight.faults()
    assert f"{preflight.RUN_GIGABYTES} GB of free disk are needed" in sentence
    assert "3 GB are there: free some, or set TRITON_CACHE to another disk" in sentence


@pytest.mark.parametrize("go", ["go1.99.0", None])
def test_with_nothing_built_30_gb_are_too_little_for_the_sum_of_all_parts(
    fit_machine: Path, monkeypatch: pytest.MonkeyPatch, go: str | None
) -> None:
    monkeypatch.setattr(binaries, "go_version", lambda: go)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100e9, 70e9, 30e9))
    programs = sum(component.disk_gigabytes for component in binaries.select(["core"]))
    others = preflight.ENVIRONMENT_GIGABYTES + preflight.IMAGE_GIGABYTES + preflight.RUN_GIGABYTES

    (sentence,) = (each for each in preflight.faults(make_up=True) if "disk" in each)

    assert sentence.startswith(f"{programs + others:.0f} GB of free disk are needed below ")
    assert f"{fit_machine} and {preflight.BUILDAH}" in sentence
    assert f"{programs:.0f} to build kubernetes, etcd" in sentence
    assert "30 GB are there" in sentence


def test_each_file_system_is_held_against_its_own_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(folder: Path) -> Usage:
        return Usage(100e9, 0, 5e9 if preflight.BUILDAH.is_relative_to(folder) else 95e9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(preflight, "device_of", lambda folder: folder == preflight.BUILDAH)

    assert only_fault().startswith(f"{preflight.IMAGE_GIGABYTES} GB of free disk are needed below")
    assert "5 GB are there" in only_fault()


def test_what_is_there_already_needs_no_disk(
    fit_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "is_built", lambda _: True)
    monkeypatch.setattr(preflight, "image_is_built", lambda: True)
    for file in ("venv-0/.complete", "cluster/kubeconfig"):
        (fit_machine / file).parent.mkdir()
        (fit_machine / file).touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100e9, 99e9, 1e9))

    assert preflight.faults(make_up=True) == []


def test_a_python_that_is_too_old_is_named_with_the_one_that_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "python_version", lambda: (3, 10))

    assert only_fault() == "Python 3.11 or newer is needed, python3 is 3.10: put one on PATH"


def test_a_python_without_ensurepip_is_named_with_the_package_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preflight, "has_ensurepip", lambda: False)

    assert only_fault() == "Python has no ensurepip: run `apt-get install python3-venv`"


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
