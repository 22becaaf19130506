"""Add-ons and their images: valid manifests, images that exist and run on their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import render
from cluster import addons, binaries, images, schemas

VALUES = addons.Values(
    system_address="198.18.254.11",
    service_range="198.19.0.0/16",
    hosts={"hub.local": "198.18.255.1", "registry.local": "198.18.255.2"},
)


def documents(name: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(addons.manifest(name, VALUES)) if found]


def image_names(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["image"]] if isinstance(value.get("image"), str) else []
        return own + [name for part in value.values() for name in image_names(part)]
    if isinstance(value, list):
        return [name for part in value for name in image_names(part)]
    if isinstance(value, str):  # the pod in a ConfigMap and the name in an argument
        return re.findall(r"(?:image: |-image=)(\S+)", value)
    return []


@pytest.fixture(scope="module")
def kubeconform() -> Path:
    where = binaries.path("kubeconform")
    if not where.exists() or not schemas.folder().is_dir():
        pytest.skip("needs `python3 -m cluster.binaries kubeconform` and its schemas")
    return where


def check(kubeconform: Path, version: str, text: str) -> subprocess.CompletedProcess[str]:
    words = ["-strict", "-kubernetes-version", version, "-schema-location", schemas.location()]
    return subprocess.run([kubeconform, *words], input=text, capture_output=True, text=True)


@pytest.mark.parametrize("version", sorted(name.removeprefix("v") for name in schemas.KUBERNETES))
@pytest.mark.parametrize("name", addons.ADDONS)
def test_a_manifest_is_valid_for_every_version(kubeconform: Path, name: str, version: str) -> None:
    done = check(kubeconform, version, addons.manifest(name, VALUES))

    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("hostPort: 80", "hostPrt: 80"),
        ("replicas: 1", "replicas: one"),
        ("gatewayClassName: traefik", "gatewayClass: traefik"),
        ("apiVersion: apps/v1", "apiVersion: apps/v1beta2"),
    ],
)
def test_the_schemas_refuse_a_mistake(kubeconform: Path, right: str, wrong: str) -> None:
    text = addons.manifest("traefik", VALUES)
    assert right in text

    assert check(kubeconform, "1.35.0", text.replace(right, wrong)).returncode == 1


@pytest.mark.parametrize(
    ("field", "accepted"), [("cpu: 2", True), ("cpu: 500m", True), ("cpu: [1]", False)]
)
def test_the_schemas_take_quantities_as_the_server_does(
    kubeconform: Path, field: str, accepted: bool
) -> None:
    pod = (
        "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: "
        f"[{{name: x, image: x, resources: {{limits: {{{field}}}}}}}]}}}}"
    )

    assert (check(kubeconform, "1.34.0", pod).returncode == 0) is accepted


@pytest.mark.parametrize("name", addons.ADDONS)
def test_every_image_of_an_addon_is_one_that_is_made_for_it(name: str) -> None:
    needed = {image for document in documents(name) for image in image_names(document)}

    assert needed <= set(images.references(addons.archives([name])))


def test_every_image_has_a_version_and_none_is_pulled() -> None:
    for name in addons.ADDONS:
        text = addons.manifest(name, VALUES)
        for image in re.findall(r"image: (\S+)", text):
            assert re.search(r":v?\d[\w.-]*$", image), image
        assert text.count("imagePullPolicy: Never") == len(
            re.findall(r"^\s+(?:- )?image: ", text, re.M)
        )


def test_kubeadm_finds_every_image_that_it_wants() -> None:
    kubeadm = binaries.path("kubeadm")
    if not kubeadm.exists():
        pytest.skip("kubeadm is not built: python3 -m cluster.binaries kubernetes")
    wanted = subprocess.run(
        [kubeadm, "config", "images", "list", "--kubernetes-version", binaries.KUBERNETES],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()

    assert len(wanted) == 7
    assert set(wanted) <= set(images.references())


def test_names_outside_the_cluster_have_their_addresses_and_no_query_leaves() -> None:
    [configuration] = documents("coredns")
    corefile = configuration["data"]["Corefile"]

    assert "198.18.255.1 hub.local" in corefile
    assert "198.18.255.2 registry.local" in corefile
    assert "forward" not in corefile


def test_without_hosts_the_corefile_still_stands() -> None:
    values = addons.Values(system_address="198.18.254.11", service_range="198.19.0.0/16")

    assert "no-such-host.invalid:53 {" in addons.manifest("coredns", values)


def test_one_storage_class_is_the_default() -> None:
    mark = "storageclass.kubernetes.io/is-default-class"
    classes = {
        found["metadata"]["name"]: found["metadata"].get("annotations", {}).get(mark)
        for found in documents("local-path")
        if found["kind"] == "StorageClass"
    }

    assert classes == {"standard": "true", "shared": None}


def test_every_storage_class_has_its_folder_in_the_configuration() -> None:
    found = documents("local-path")
    [settings] = [item["data"] for item in found if item["kind"] == "ConfigMap"]
    configured = json.loads(settings["config.json"])["storageClassConfigs"]

    assert set(configured) == {
        item["metadata"]["name"] for item in found if item["kind"] == "StorageClass"
    }
    assert configured["shared"] == {"sharedFileSystemPath": "/var/local-path-shared"}
    assert '"$VOL_DIR"' in settings["setup"]


def test_an_unknown_addon_is_refused_with_the_known_ones() -> None:
    with pytest.raises(addons.AddonError, match=r"no add-on 'nginx'; known: coredns, kube-router"):
        addons.archives(["nginx"])


def test_a_refused_manifest_is_an_error_with_what_kubectl_said(tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\ncat >/dev/null\necho 'the server says no' >&2\nexit 1\n")
    kubectl.chmod(0o755)

    with pytest.raises(addons.AddonError, match="kubectl apply failed: the server says no"):
        addons.apply([str(kubectl)], VALUES, ["kube-router"])


def unpacked(archive: str, reference: str, folder: Path) -> Path:
    """Return the root of an image as a container would see it."""
    programs = {"kube-router": "kube-router", "kubernetes": "kube"}
    if archive in programs and not binaries.path(programs[archive]).exists():
        pytest.skip(f"{archive} is not built: python3 -m cluster.binaries {archive}")
    try:
        path = images.archives([archive])[archive]
    except images.PackageMissingError as error:
        pytest.skip(str(error))
    with tarfile.open(path) as tar:
        tar.extractall(folder / "blobs", filter="tar")
    blobs = folder / "blobs" / "blobs" / "sha256"
    index = json.loads((folder / "blobs" / "index.json").read_text())
    [entry] = [
        item
        for item in index["manifests"]
        if item["annotations"]["io.containerd.image.name"] == reference
    ]
    manifest = json.loads((blobs / entry["digest"].removeprefix("sha256:")).read_text())
    root = folder / "root"
    for layer in manifest["layers"]:
        with tarfile.open(blobs / layer["digest"].removeprefix("sha256:")) as tar:
            tar.extractall(root, filter="tar")
    return root


def inside(root: Path, *words: str) -> str:
    """Run a program of an image, in its root and without a network."""
    if os.geteuid() != 0:
        pytest.skip("needs root for chroot")
    done = subprocess.run(
        ["unshare", "--net", "chroot", str(root), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.root
@pytest.mark.parametrize(
    ("archive", "reference"),
    [
        ("kubernetes", f"registry.k8s.io/kube-proxy:{binaries.KUBERNETES}"),
        ("kube-router", "localhost/kube-router:v2.2.1"),
    ],
)
def test_the_packet_filter_of_an_image_has_all_that_its_rules_need(
    archive: str, reference: str, tmp_path: Path
) -> None:
    root = unpacked(archive, reference, tmp_path)
    rules = (
        "*filter\n:X - [0:0]\n"
        "-A X -p tcp -m statistic --mode random --probability 0.5 -j ACCEPT\n"
        "-A X -p tcp -m multiport --dports 80,81 -m conntrack --ctstate NEW -j RETURN\n"
        "-A X -m comment --comment why -m mark --mark 0x4000/0x4000 -j RETURN\n"
        "-A X -m addrtype --dst-type LOCAL -j RETURN\n"
        "-A X -p tcp -m recent --name x --rcheck -j REJECT\nCOMMIT\n"
    )
    (root / "tmp" / "rules").write_text(rules)

    inside(root, "/usr/sbin/iptables-restore", "--test", "/tmp/rules")
    inside(root, "/usr/sbin/ip6tables", "-L", "-n")
    inside(root, "/usr/sbin/ipset", "list")
    inside(root, "/usr/sbin/conntrack", "--version")


@pytest.mark.root
def test_the_helper_of_volumes_makes_and_removes_folders(tmp_path: Path) -> None:
    root = unpacked("curl", "localhost/busybox:1", tmp_path)

    inside(root, "/bin/sh", "-euc", "mkdir -m 0777 -p /data/a/b; test -d /data/a/b; rm -rf /data")

    assert not (root / "data").exists()


@pytest.mark.root
def test_the_test_client_is_a_curl_that_runs_on_its_own_libraries(tmp_path: Path) -> None:
    root = unpacked("curl", "localhost/curl:1", tmp_path)

    assert inside(root, "/usr/bin/curl", "--version").startswith("curl ")
    assert inside(root, "/bin/sh", "-c", "curl -s -m1 http://127.0.0.1:9 || echo $?") == "7\n"


def test_an_image_is_the_same_bytes_from_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\n")
    archive = images.Archive(
        name="x",
        images=(images.Image(reference="localhost/x:1", layers=("one",), entrypoint=("/x",)),),
        layers={"one": dict},
    )
    made = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        files: images.Files = {"/x": tmp_path / "program", "/y": "x", "/z/w": b"w"}
        images._write_archive(archive, {"one": files}, folder)
        made.append((folder / "archive.tar").read_bytes())

    assert made[0] == made[1]
    with tarfile.open(tmp_path / "first" / "archive.tar") as tar:
        assert {"oci-layout", "index.json"} <= set(tar.getnames())


def test_an_image_changes_with_the_program_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE", str(tmp_path / "cache"))
    program = tmp_path / "program"
    program.write_text("one")
    image = images.Image(reference="localhost/x:1", layers=("one",))
    archive = images.Archive(name="x", images=(image,), layers={"one": lambda: {"/x": program}})

    first = images._archive(archive)
    again = images._archive(archive)
    program.write_text("two, longer")
    second = images._archive(archive)

    assert first == again
    assert second != first
    assert list((tmp_path / "cache" / "images").iterdir()) == [second]


def test_a_missing_debian_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)

    with pytest.raises(images.PackageMissingError, match="apt-get install busybox-static"):
        images.archives(["curl"])


@pytest.mark.chart
@pytest.mark.parametrize("signal", ["inflight", "pending", "queueTime"])
def test_the_adapter_serves_what_the_autoscaler_of_the_chart_asks_for(signal: str) -> None:
    """The rule that the chart renders for its user is in the add-on, word for word."""
    autoscaling = {"enabled": True, "scaler": "hpa", "signal": signal}
    store = {"accessModes": ["ReadWriteMany"]}
    rendered = render({"modelStore": store, "autoscaling": autoscaling})
    own = yaml.safe_load(rendered.one("ConfigMap", "rel-triton-adapter-rule")["data"]["rule.yaml"])
    found = next(
        document
        for document in documents("monitoring")
        if document["kind"] == "ConfigMap" and document["metadata"]["name"] == "adapter-config"
    )

    assert own["rules"][0] in yaml.safe_load(found["data"]["config.yaml"])["rules"]
