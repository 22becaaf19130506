"""Checkov's policies over the rendered charts and the Dockerfiles; each skip has its reason."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.audit.tools import CHECKOV, AuditError, MissingError
from tools.place import ROOT, tool_path

SKIPS = Path(__file__).with_name("skips.yaml")
CHARTS = ("triton", "locust")
DOCKERFILES = ("image/Dockerfile", "load_testing/Dockerfile")


@dataclass(frozen=True, kw_only=True)
class Skip:
    """A policy that is not followed.

    Attributes:
        check: Checkov's name of the policy.
        resources: pattern of what is excused, as `file:resource`; * is anything.
        reason: why.
    """

    check: str
    resources: str
    reason: str

    def covers(self, finding: Finding) -> bool:
        """Whether it excuses a finding."""
        named = f"{finding.file}:{finding.resource}"
        return self.check == finding.check and fnmatch.fnmatchcase(named, self.resources)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A policy that something breaks.

    Attributes:
        file: name of the rendered case (`triton-gpu`) or the path of a Dockerfile.
        resource: `Kind.namespace.name`, as Checkov writes it.
    """

    check: str
    title: str
    file: str
    resource: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What Checkov found.

    Attributes:
        passed: checks that passed.
        excused: findings with a skip.
        broken: findings without one.
        unused: skips that excuse nothing, so that they can go.
    """

    passed: int
    excused: tuple[Finding, ...]
    broken: tuple[Finding, ...]
    unused: tuple[Skip, ...]


def skips(file: Path = SKIPS) -> tuple[Skip, ...]:
    """Return the skips of a file."""
    loaded: list[dict[str, str]] = yaml.safe_load(file.read_text()) or []
    return tuple(
        Skip(check=one["check"], resources=one.get("resources", "*"), reason=one["reason"])
        for one in loaded
    )


def judge(findings: list[Finding], excuses: tuple[Skip, ...], *, passed: int) -> Verdict:
    """Sort findings by whether a skip excuses them."""
    used: set[Skip] = set()
    excused: list[Finding] = []
    broken: list[Finding] = []
    for finding in findings:
        covering = [skip for skip in excuses if skip.covers(finding)]
        used.update(covering)
        (excused if covering else broken).append(finding)
    unused = tuple(skip for skip in excuses if skip not in used)
    return Verdict(passed=passed, excused=tuple(excused), broken=tuple(broken), unused=unused)


def render(into: Path) -> None:
    """Render each chart with each file of its ci/ folder, and with its defaults.

    Raises:
        MissingError: there is no helm.
        AuditError: helm refuses.
    """
    helm = shutil.which("helm", path=tool_path())
    if helm is None:
        raise MissingError("helm is missing: install it, or run make up, which builds it")
    for chart in CHARTS:
        folder = ROOT / "charts" / chart
        cases: list[Path | None] = [*sorted(folder.glob("ci/*-values.yaml"))]
        if chart == "triton":
            cases.append(None)  # its defaults; a load test has no useful ones
        for case in cases:
            name = case.stem.removesuffix("-values") if case else "defaults"
            words = [helm, "template", "release", str(folder), "--namespace", "models"]
            words += ["--values", str(case)] if case else []
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise AuditError(f"helm cannot render {chart} with {name}: {done.stderr.strip()}")
            (into / f"{chart}-{name}.yaml").write_text(done.stdout)


def copy_dockerfiles(into: Path) -> None:
    """Copy the Dockerfiles, so that Checkov reads nothing else."""
    for name in DOCKERFILES:
        target = into / name
        target.parent.mkdir(parents=True)
        shutil.copy(ROOT / name, target)


def run_checkov(folder: Path) -> tuple[list[Finding], int]:
    """Run Checkov over a folder without any network; return its findings and what passed.

    Raises:
        AuditError: it is not installed or ends without a result.
    """
    words = [CHECKOV.program("checkov"), "--directory", str(folder), "--output=json", "--quiet"]
    words += ["--compact", "--skip-download", "--framework", "kubernetes", "dockerfile"]
    environment = {**os.environ, "LOG_LEVEL": "ERROR", "CHECKOV_RUN_SCA_PACKAGE_SCAN": "false"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    try:
        loaded = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise AuditError(f"checkov ended with {done.returncode} and said: {last}") from None
    reports: list[dict[str, Any]] = loaded if isinstance(loaded, list) else [loaded]
    if not all("summary" in report for report in reports):
        raise AuditError("checkov found nothing to look at")
    if any(report["summary"]["parsing_errors"] for report in reports):
        raise AuditError("checkov could not read every file")
    findings = [finding for report in reports for finding in _findings(report)]
    return findings, sum(report["summary"]["passed"] for report in reports)


def _findings(report: dict[str, Any]) -> Iterator[Finding]:
    for failed in report["results"]["failed_checks"]:
        path = Path(failed["file_path"].lstrip("/"))
        yield Finding(
            check=failed["check_id"],
            title=failed["check_name"],
            file=path.stem if path.suffix == ".yaml" else str(path),
            resource=failed["resource"],
        )


def check(folder: Path) -> Verdict:
    """Render everything into a folder and judge it."""
    render(folder)
    copy_dockerfiles(folder)
    findings, passed = run_checkov(folder)
    return judge(findings, skips(), passed=passed)
