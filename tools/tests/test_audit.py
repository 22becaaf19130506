"""What the audit reads, how it judges, and what its exit code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.audit import __main__ as command
from tools.audit import contents, policy, vulnerabilities
from tools.audit.contents import Contents
from tools.audit.policy import Finding, Skip
from tools.audit.tools import BILLS, MissingError

GO_MOD = """module cluster/example

go 1.25.0

require example.com/alone v1.0.0

require (
	example.com/direct v1.2.3 // with a comment
	example.com/moved v0.1.0
	example.com/here v0.0.0
)

replace example.com/moved v0.1.0 => example.org/fork v0.1.1

replace (
	example.com/here => ./stand-in
)

exclude example.com/bad v9.9.9
"""
FINDING = Finding(check="C1", title="t", file="triton-gpu", resource="Pod.models.x-test")


def test_modules_are_those_that_a_build_takes_after_replacements(tmp_path: Path) -> None:
    file = tmp_path / "go.mod"
    file.write_text(GO_MOD)
    assert contents.modules(file) == {
        "example.com/alone": "v1.0.0",
        "example.com/direct": "v1.2.3",
        "example.org/fork": "v0.1.1",
    }


def test_every_component_of_the_cluster_is_in_its_bill() -> None:
    parts = contents.cluster().parts
    with_modules = {
        file.parent.name
        for file in contents.COMPONENTS.glob("*/go.mod")
        if "require" in file.read_text()
    }
    assert {user for part in parts for user in part["used_by"].split()} == with_modules
    assert "k8s.io/kubernetes" in {part["name"] for part in parts}
    assert len({(part["name"], part["version"]) for part in parts}) == len(parts)


@pytest.mark.parametrize("name", sorted(contents.IMAGES))
def test_all_that_pip_puts_into_an_image_is_pinned(name: str) -> None:
    parts = list(contents.pinned(contents.IMAGES[name]))
    assert len(parts) > 20
    assert all(part["version"] for part in parts)


def test_an_image_that_was_not_built_is_told_from_its_pins_and_the_gap_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = contents.image("triton-hf-light")
    assert {part["kind"] for part in found.parts} == {"pypi"}
    assert "no system packages" in found.gap


def test_a_finding_is_broken_unless_a_skip_covers_it_and_a_skip_in_vain_is_told() -> None:
    covers = Skip(check="C1", resources="triton-*:Pod.models.*-test", reason="r")
    other_check = Skip(check="C2", resources="*", reason="r")
    elsewhere = Skip(check="C1", resources="locust-*", reason="r")
    verdict = policy.judge([FINDING], (covers, other_check, elsewhere), passed=1)
    assert (verdict.excused, verdict.broken) == ((FINDING,), ())
    assert verdict.unused == (other_check, elsewhere)
    assert policy.judge([FINDING], (other_check, elsewhere), passed=1).broken == (FINDING,)


def test_every_skip_has_a_reason_that_says_something() -> None:
    assert all(len(skip.reason.split()) > 5 for skip in policy.skips())


def bills() -> str:
    try:
        return BILLS.program("python")
    except MissingError as reason:
        pytest.skip(str(reason))


def test_a_bill_is_valid_cyclonedx_with_an_address_for_each_part(tmp_path: Path) -> None:
    bills()
    parts = (
        {"kind": "pypi", "name": "typing_extensions", "version": "4.1", "license": "PSF-2.0"},
        {"kind": "golang", "name": "k8s.io/api", "version": "v0.1.0", "used_by": "a b"},
        {
            **{"kind": "deb", "name": "libc6", "version": "2.36-9+deb12u1"},
            **{"architecture": "amd64", "system": "debian", "release": "12"},
        },
        {"kind": "generic", "name": "tritonserver", "version": "2.51.0"},
    )
    command.write_bill(Contents(name="image", parts=parts), tmp_path)
    written = json.loads((tmp_path / "image.cdx.json").read_text())
    assert (written["bomFormat"], written["specVersion"]) == ("CycloneDX", "1.6")
    assert {part["purl"] for part in written["components"]} == {
        "pkg:pypi/typing-extensions@4.1",
        "pkg:golang/k8s.io/api@v0.1.0",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64&distro=debian-12",
        "pkg:generic/tritonserver@2.51.0",
    }


IMAGE = Contents(name="image", parts=({"kind": "pypi", "name": "a", "version": "1"},))
KNOWN = vulnerabilities.Vulnerability(package="a", version="1", name="CVE-1", fixed_in="2")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (set(), command.EXIT_GOOD, "no vulnerability"),
        ({KNOWN}, command.EXIT_FINDING, "CVE-1"),
        (vulnerabilities.UnreachableError("no database"), command.EXIT_UNREACHABLE, "no database"),
    ],
    ids=["nothing known", "something known", "no database"],
)
def test_the_exit_code_tells_good_known_and_unreachable_apart(
    answer: set[vulnerabilities.Vulnerability] | Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def known(_: list[Contents]) -> set[vulnerabilities.Vulnerability]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(vulnerabilities, "known", known)
    assert command.ask([IMAGE]) == code
    assert said in capsys.readouterr().out


def test_what_pip_audit_writes_is_read() -> None:
    vulns = [{"id": "PYSEC-1", "fix_versions": ["2", "3"]}, {"id": "PYSEC-2", "fix_versions": []}]
    text = json.dumps({"dependencies": [{"name": "a", "version": "1", "vulns": vulns}]})
    assert {one.fixed_in for one in vulnerabilities.read(text)} == {"2, 3", "no version"}


def test_a_package_that_the_database_does_not_know_is_never_called_good() -> None:
    known = {"name": "a", "version": "1", "vulns": []}
    text = json.dumps({"dependencies": [known, {"name": "b", "skip_reason": "not found"}]})
    with pytest.raises(vulnerabilities.UnreachableError, match="does not know b"):
        vulnerabilities.read(text)


def test_two_versions_of_a_package_are_both_asked_about_each_in_a_round_of_its_own() -> None:
    parts = tuple(
        {"kind": "pypi", "name": name, "version": version}
        for name, version in (("a_b", "1"), ("A-B", "2"), ("c", "1"))
    )
    images = [Contents(name="one", parts=parts[:2]), Contents(name="two", parts=parts)]
    assert vulnerabilities.rounds(images) == [["a-b==1", "c==1"], ["a-b==2"]]
