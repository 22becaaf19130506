"""The programs of the cluster: what decides a result, what is said when it cannot be made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import binaries
from cluster.binaries import COMPONENTS, BinariesError, Component, MissingError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "go_program", lambda: None)
    monkeypatch.setattr(binaries, "go_version", lambda: None)


@pytest.fixture
def greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Component:
    """A component of a few lines that builds without a download."""
    if binaries.go_program() is None:
        pytest.skip("needs Go")
    folder = tmp_path / "components" / "greeting"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text("module cluster/greeting\n\ngo 1.21\n")
    (folder / "main.go").write_text(
        'package main\n\nvar word = "?"\n\nfunc main() { println(word) }\n'
    )
    component = Component(
        name="greeting",
        programs={"greet": "."},
        links={"hail": "greet"},
        variables={"main.word": "hello"},
        disk_gigabytes=0.1,
    )
    monkeypatch.setattr(binaries, "COMPONENTS_DIR", tmp_path / "components")
    monkeypatch.setattr(binaries, "COMPONENTS", (component,))
    return component


def test_a_built_program_runs_and_a_second_call_builds_nothing(
    empty_cache: Path, greeting: Component
) -> None:
    first = binaries.ensure(["greet"])
    said = subprocess.run([first["hail"]], capture_output=True, text=True, check=True).stderr
    made_at = first["greet"].stat().st_mtime_ns

    assert said == "hello\n"
    assert binaries.ensure(["greeting"]) == first
    assert first["greet"].stat().st_mtime_ns == made_at


def test_nothing_but_the_result_stays_after_a_build(empty_cache: Path, greeting: Component) -> None:
    binaries.ensure(["greet"])

    assert not binaries.cache_folder().exists()
    assert [folder.name for folder in (empty_cache / "bin").iterdir()] == [
        binaries.result_folder(greeting).name
    ]


def test_a_changed_source_is_another_result(empty_cache: Path, greeting: Component) -> None:
    before = binaries.ensure(["greet"])["greet"]
    source = greeting.folder / "main.go"
    source.write_text(source.read_text().replace("println(word)", 'println("bye")'))

    after = binaries.ensure(["greet"])["greet"]

    assert after != before
    assert subprocess.run([after], capture_output=True, text=True).stderr == "bye\n"
    assert before.exists()


def test_only_the_two_newest_results_stay(empty_cache: Path, greeting: Component) -> None:
    source = greeting.folder / "main.go"
    made = []
    for number in range(3):
        source.write_text(f"package main\n\nfunc main() {{ println({number}) }}\n")
        made.append(binaries.ensure(["greet"], keep_caches=True)["greet"])

    assert [program.exists() for program in made] == [False, True, True]


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "main.go"])
def test_every_source_file_decides_the_key(greeting: Component, file: str) -> None:
    before = binaries.source_key(greeting)
    path = greeting.folder / file
    path.write_text((path.read_text() if path.exists() else "") + "\n// changed\n")

    assert binaries.source_key(greeting) != before


def test_flags_and_the_version_of_go_decide_the_key(
    greeting: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Component(name="greeting", programs={"greet": "."}, tags=("x",))
    before = binaries.result_folder(greeting)

    assert binaries.source_key(other) != binaries.source_key(greeting)
    monkeypatch.setattr(binaries, "go_version", lambda: "go9.9.9")
    assert binaries.result_folder(greeting) != before


def test_a_program_that_does_not_compile_is_not_published(
    empty_cache: Path, greeting: Component
) -> None:
    (greeting.folder / "main.go").write_text("package main\n\nfunc main() { nonsense() }\n")

    with pytest.raises(BinariesError, match="undefined: nonsense"):
        binaries.ensure(["greet"])

    assert not binaries.is_built(greeting)
    assert list((empty_cache / "bin").iterdir()) == []


def test_a_waiting_process_goes_on_when_another_has_built(
    empty_cache: Path, greeting: Component
) -> None:
    holder = subprocess.Popen(["flock", str(empty_cache / "go.lock"), "cat"], stdin=subprocess.PIPE)
    program = (
        "import sys; from pathlib import Path; from cluster import binaries as b;"
        f"b.COMPONENTS_DIR = Path({str(greeting.folder.parent)!r});"
        "b.COMPONENTS = (b.Component(name='greeting', programs={'greet': '.'},"
        "links={'hail': 'greet'}, variables={'main.word': 'hello'}, disk_gigabytes=0.1),);"
        "print('asking', flush=True); print(b.ensure(['greet'])['greet'])"
    )
    waiter = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT / "k8s-tests", stdout=subprocess.PIPE, text=True
    )
    try:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "asking\n"
        binaries._build(greeting, nice=0)
        out, _ = waiter.communicate(timeout=60)
    finally:
        waiter.kill()
        holder.communicate()

    assert out.strip() == str(binaries.result_folder(greeting) / "greet")


def test_without_go_it_says_what_to_install_and_changes_nothing(
    empty_cache: Path, no_go: None
) -> None:
    with pytest.raises(MissingError, match=r"Go 1\.\d+\.0 or newer .* helm: install it from"):
        binaries.ensure(["helm"])

    assert list(empty_cache.iterdir()) == []


def test_an_old_go_is_named_with_the_version_that_is_needed(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "go_version", lambda: "go1.19.8")

    with pytest.raises(MissingError, match=r"Go 1\.2\d\.0 or newer .*, this is go1\.19\.8"):
        binaries.ensure(["etcd"])


def test_too_little_disk_is_named_with_both_sizes_and_changes_nothing(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 8e9, 1e9))
    monkeypatch.setattr(binaries, "go_version", lambda: "go1.99.0")

    with pytest.raises(MissingError, match=r"5 GB of free disk .*TRITON_CACHE") as caught:
        binaries.ensure(["kubernetes"])

    assert "1.0 GB are there" in str(caught.value)
    assert list(empty_cache.iterdir()) == []


def test_a_filled_cache_is_used_on_a_machine_without_go(
    empty_cache: Path, greeting: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = binaries.ensure(["greet"])
    monkeypatch.setattr(binaries, "go_program", lambda: None)
    monkeypatch.setattr(binaries, "go_version", lambda: None)

    assert binaries.ensure(["greet"]) == built


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BinariesError, match=r"no component or program 'kubelt'.*kubernetes"):
        binaries.select(["kubelt"])


def test_a_missing_part_ends_the_command_with_exit_code_2(
    empty_cache: Path, no_go: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert binaries.main(["helm"]) == 2
    assert "Go 1." in capsys.readouterr().err


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_module_of_a_component_is_pinned_with_its_hash(component: Component) -> None:
    text = (component.folder / "go.mod").read_text()
    required = dict(re.findall(r"^\s*(?:require )?(\S+\.\S+/\S+) (v\S+)", text, re.MULTILINE))
    required |= dict(re.findall(r"^\s*(?:replace )?\S+ => (\S+) (v\S+)", text, re.MULTILINE))
    replaced = re.findall(r"^\s*(?:replace )?(\S+) => ", text, re.MULTILINE)
    sums = (component.folder / "go.sum").read_text()
    by_hash = {line.split()[0] for line in sums.splitlines()}

    assert [name for name in required if name not in by_hash and name not in replaced] == []
    assert "latest" not in text


def test_modules_that_components_share_have_one_version() -> None:
    """What several components use compiles once, which halves a cold build."""
    shared = ["kubernetes", "coredns", "kube-router", "local-path-provisioner", "traefik"]
    versions: dict[str, dict[str, str]] = {"k8s.io/client-go": {}, "google.golang.org/protobuf": {}}
    for name in shared:
        text = (binaries.COMPONENTS_DIR / name / "go.mod").read_text()
        for module, found in versions.items():
            match = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", text, re.M)
            assert match is not None
            found[name] = match[1]

    assert {module: len(set(found.values())) for module, found in versions.items()} == {
        "k8s.io/client-go": 1,
        "google.golang.org/protobuf": 1,
    }


@pytest.mark.parametrize(
    ("program", "arguments", "version"),
    [
        ("kubeadm", ["version", "-o", "short"], "v1.35.4"),
        ("kubelet", ["--version"], "v1.35.4"),
        ("kube-apiserver", ["--version"], "v1.35.4"),
        ("kube-proxy", ["--version"], "v1.35.4"),
        ("kubectl", ["version", "--client"], "v1.35.4"),
        ("etcd", ["--version"], "3.6.6"),
        ("coredns", ["-version"], "1.13.1"),
        ("helm", ["version", "--template", "{{.Version}}"], "v4"),
    ],
)
def test_a_built_program_names_its_version(
    program: str, arguments: list[str], version: str
) -> None:
    where = binaries.path(program)
    if not where.exists():
        pytest.skip(f"{program} is not built: python3 -m cluster.binaries {program}")

    done = subprocess.run([where, *arguments], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert version in done.stdout


def test_a_killed_build_leaves_no_half_result_and_ends_its_compilers(
    empty_cache: Path, greeting: Component
) -> None:
    (greeting.folder / "main.go").write_text("package main\n\nfunc main() {}\n")
    program = (
        "from pathlib import Path; from cluster import binaries as b;"
        f"b.COMPONENTS_DIR = Path({str(greeting.folder.parent)!r});"
        "b.COMPONENTS = (b.Component(name='greeting', programs={'greet': '.'}),);"
        "import sys; sys.exit(b.main(['greeting']))"
    )
    build = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT / "k8s-tests", stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list(empty_cache.glob("bin/.greeting-*")) and build.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    build.terminate()
    code = build.wait(timeout=60)

    assert code in (143, 0)  # 0: it was done before the signal came
    assert list(empty_cache.glob("bin/.greeting-*")) == []
    if code == 143:
        assert not binaries.is_built(greeting)


def test_the_record_of_a_build_says_what_made_it(empty_cache: Path, greeting: Component) -> None:
    folder = binaries.ensure(["greet"])["greet"].parent

    record = json.loads((folder / "build.json").read_text())

    assert record["go"] == binaries.go_version()
    assert record["sources"] == binaries.source_key(greeting)
