"""The image: what `docker build .` finds at the root, and what the build is told of the network."""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
from pathlib import Path

import pytest

from embedded_triton.fetch import TRITON_VERSION
from tools.image_build import __main__ as build
from tools.image_build import engine, network, shell
from tools.place import ROOT

DOCKERFILE = ROOT / "Dockerfile"


def copied() -> list[str]:
    """Return the sources of every COPY from the folder that is built."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


def reaches_the_build(path: str) -> bool:
    """Return what .dockerignore says of a path: the last line that fits it or a parent decides."""
    parents = ["/".join(path.split("/")[:end]) for end in range(1, path.count("/") + 2)]
    passes = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(fnmatch.fnmatchcase(each, pattern) for each in parents):
                passes = line.startswith("!")
    return passes


def test_the_dockerfile_at_the_root_is_the_one_of_the_image() -> None:
    assert DOCKERFILE.is_symlink()
    assert DOCKERFILE.resolve() == ROOT / "image" / "Dockerfile"
    assert reaches_the_build("image/Dockerfile")


def test_the_base_is_by_default_the_documented_one() -> None:
    (default,) = re.findall(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert default == build.DEFAULT_BASE == "nvcr.io/nvidia/tritonserver:26.07-py3"
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert bases[0] == "${BASE_IMAGE}"


def test_docker_build_without_options_makes_the_full_image_as_a_user_without_rights() -> None:
    *_, last = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)
    assert last.startswith("full-packages AS full\n")
    assert re.findall(r"^USER (\S+)$", last, re.MULTILINE) == ["10001:10001"]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_is_there_reaches_the_build_and_decides_its_key(source: str) -> None:
    assert (ROOT / source).exists()
    assert reaches_the_build(source)
    folder, name = source.split("/", 1)
    assert folder == "image"
    assert name in build.INPUTS


@pytest.mark.parametrize(
    "path", [".env", ".git", "k8s-tests", "benchmarks/engine", "model_repository"]
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert (ROOT / path).exists() or path == ".env"
    assert not reaches_the_build(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without settings of its own; returns where secrets go."""
    for name in network.PIP_SETTINGS:
        monkeypatch.delenv(f"PIP_{name.upper().replace('-', '_')}", raising=False)
    for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "pip_files", lambda: [tmp_path / "pip-of-the-machine.conf"])
    monkeypatch.setattr(network, "output", lambda _: "")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    return secrets


def secret(options: list[str], name: str) -> Path | None:
    """Return the file of a secret among the options of a build."""
    assert options[::2] == ["--secret"] * (len(options) // 2)
    files = {option.split(",src=")[0]: option.split(",src=")[1] for option in options[1::2]}
    found = files.get(f"id={name}")
    return Path(found) if found else None


def pip_of_the_build(options: list[str]) -> dict[str, dict[str, str]]:
    file = secret(options, "pip.conf")
    assert file is not None
    parser = configparser.RawConfigParser()
    parser.read(file)
    return {name: dict(parser.items(name)) for name in parser.sections()}


def test_an_open_network_needs_no_secret(folder: Path) -> None:
    assert network.network_options(folder) == []


def test_pip_of_the_build_gets_the_settings_of_this_machine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pip-of-the-machine.conf").write_text(
        "[global]\nindex-url = https://user:p%40ss@pypi.example.com/simple\nuser = true\n"
        "[install]\ntrusted-host = pypi.example.com\n"
    )
    assert pip_of_the_build(network.network_options(folder)) == {
        "global": {"index-url": "https://user:p%40ss@pypi.example.com/simple"},
        "install": {"trusted-host": "pypi.example.com"},
    }


def test_variables_of_pip_count_more_than_its_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip-of-the-machine.conf").write_text(
        "[install]\nindex-url = https://one.example.com\n[global]\nretries = 2\n"
    )
    monkeypatch.setenv("PIP_INDEX_URL", "https://two.example.com")
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example.com:3128")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels/of/this/machine")

    assert pip_of_the_build(network.network_options(folder)) == {
        "global": {
            "retries": "2",
            "index-url": "https://two.example.com",
            "proxy": "http://proxy.example.com:3128",
        }
    }


def test_broken_settings_of_pip_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pip-of-the-machine.conf").write_text("index-url = https://one.example.com\n")
    with pytest.raises(shell.BuildError, match=r"pip-of-the-machine\.conf"):
        network.network_options(folder)


@pytest.mark.parametrize("name", ["PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_the_ca_bundle_of_this_machine_reaches_the_build(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    monkeypatch.setenv(name, str(bundle))
    options = network.network_options(folder)
    assert secret(options, "ca.pem") == bundle
    assert secret(options, "pip.conf") is None


def test_apt_of_the_build_gets_how_this_machine_speaks_http_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump = (
        'APT "";\nDir::Cache "var/cache/apt";\nAcquire "";\nAcquire::cdrom::mount "/media/cdrom";\n'
        'Acquire::http "";\nAcquire::http::Proxy "http://proxy.example.com:3128";\n'
        'Acquire::https::Verify-Peer "false";\n'
    )
    monkeypatch.setattr(network, "output", lambda _: dump)
    file = secret(network.network_options(folder), "apt.conf")
    assert file is not None
    assert file.read_text().splitlines() == [
        'Acquire::http::Proxy "http://proxy.example.com:3128";',
        'Acquire::https::Verify-Peer "false";',
    ]


def test_each_secret_is_one_that_the_dockerfile_mounts(folder: Path) -> None:
    mounted = set(re.findall(r"--mount=type=secret,id=(\S+)", DOCKERFILE.read_text()))
    assert mounted == {"pip.conf", "ca.pem", "apt.conf"}


@pytest.mark.parametrize(
    ("environment", "version"),
    [(["PATH=/bin"], TRITON_VERSION), (["TRITON_SERVER_VERSION=2.71.0"], "2.71.0")],
    ids=["the base that is made here", "NVIDIA's base"],
)
def test_the_version_of_triton_is_read_from_the_image(
    monkeypatch: pytest.MonkeyPatch, environment: list[str], version: str
) -> None:
    answers = {
        "docker": json.dumps([{"Config": {"Env": environment}}]),
        "buildah": json.dumps({"OCIv1": {"config": {"Env": environment}}}),
    }
    for tool, answer in answers.items():
        monkeypatch.setattr(
            engine.Tool, "__init__", lambda self, tool=tool: self.__dict__.update(name=tool)
        )
        monkeypatch.setattr(engine, "output", lambda _, answer=answer: answer)
        assert build.triton_version("triton-hf:0.1.0") == version


def test_an_image_that_is_not_here_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.Tool, "__init__", lambda self: self.__dict__.update(name="docker"))
    monkeypatch.setattr(engine, "output", lambda _: None)
    with pytest.raises(shell.BuildError, match="there is no image triton-hf"):
        build.triton_version("triton-hf:0.1.0")


@pytest.mark.parametrize(("name", "verb"), [("docker", ["image", "rm"]), ("buildah", ["rmi"])])
def test_only_images_that_were_built_here_are_removed(
    monkeypatch: pytest.MonkeyPatch, name: str, verb: list[str]
) -> None:
    asked: list[list[str]] = []
    done: list[list[str]] = []

    def output(words: list[str]) -> str:
        asked.append(words)
        return "one\ntwo\none\n"

    monkeypatch.setattr(engine.Tool, "__init__", lambda self: self.__dict__.update(name=name))
    monkeypatch.setattr(engine, "output", output)
    monkeypatch.setattr(engine, "run", lambda words, **_: done.append(words))

    assert engine.Tool().remove_labelled() == 2

    assert asked == [[name, "images", "--quiet", "--filter", f"label={shell.LABEL}"]]
    assert done == [[name, *verb, "--force", "one", "two"]]
