"""`make audit`: bills of materials, known vulnerabilities, policies over charts and Dockerfiles.

Writes a CycloneDX file for each image and for the programs of the embedded cluster; scanners read
them (`grype sbom:FILE`, `trivy sbom FILE`, `osv-scanner --sbom FILE`), system packages and Go
modules included. Asks a public database about the Python packages. Runs Checkov over all renders
of the charts; a policy that is not followed needs its reason in skips.yaml.

Exit codes: 0 all good; 1 a policy is broken or a vulnerability is known; 2 something is missing
here or failed; 3 all that could be checked is good, but no vulnerability database was reached.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from tools.audit import contents, policy, vulnerabilities
from tools.audit.tools import BILLS, CHECKOV, AuditError, say
from tools.place import ROOT, VERSION

EXIT_GOOD, EXIT_FINDING, EXIT_MISSING, EXIT_UNREACHABLE = 0, 1, 2, 3
PARTS = ("bills", "vulnerabilities", "policy")
SCRIPT = Path(__file__).with_name("cyclonedx_file.py")


def write_bill(found: contents.Contents, folder: Path) -> None:
    """Write what is in an image as CycloneDX JSON, and say what it holds.

    Raises:
        AuditError: it cannot be written, or is not valid.
    """
    file = folder / f"{found.name}.cdx.json"
    told = {"name": found.name, "version": VERSION, "parts": found.parts}
    words = [BILLS.program("python"), str(SCRIPT), str(file)]
    done = subprocess.run(
        words, input=json.dumps(told), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise AuditError(f"{file.name} cannot be written: {done.stderr.strip()[-500:]}")
    kinds = Counter(part["kind"] for part in found.parts)
    held = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print(f"bill      {file.name:<28}{held}")
    if found.gap:
        print(f"          {found.gap}")


def ask(images: list[contents.Contents]) -> int:
    """Print the known vulnerabilities; return the exit code."""
    say("asking for known vulnerabilities of the Python packages")
    try:
        found = vulnerabilities.known(images)
    except vulnerabilities.UnreachableError as reason:
        print(f"unknown   {reason}")
        return EXIT_UNREACHABLE
    for one in sorted(found, key=lambda each: (each.package, each.name)):
        print(f"known     {one.name:<22}{one.package} {one.version}, fixed in {one.fixed_in}")
    if not found:
        print("known     no vulnerability of a Python package")
    return EXIT_FINDING if found else EXIT_GOOD


def check_policies() -> int:
    """Print what Checkov found; return the exit code."""
    say("checkov over all renders of the charts and the Dockerfiles (about 1 min)")
    with tempfile.TemporaryDirectory() as name:
        verdict = policy.check(Path(name))
    for finding in verdict.broken:
        print(f"broken    {finding.check:<16}{finding.file}: {finding.resource}: {finding.title}")
    for skip in verdict.unused:
        print(f"unused    {skip.check:<16}{policy.SKIPS.name} excuses {skip.resources} in vain")
    print(
        f"policies  {verdict.passed} passed, {len(verdict.excused)} excused by "
        f"{len(policy.skips())} reasons in {policy.SKIPS.relative_to(ROOT)}, "
        f"{len(verdict.broken)} broken"
    )
    return EXIT_FINDING if verdict.broken or verdict.unused else EXIT_GOOD


def audit(parts: list[str], folder: Path) -> int:
    """Run the parts; return the worst exit code: a finding, then missing, then unreachable."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = {EXIT_GOOD}
    try:
        if {"bills", "vulnerabilities"} & set(parts):
            say("looking into the images")
            images = [contents.image(name) for name in contents.IMAGES]
        if "bills" in parts:
            for found in [*images, contents.cluster()]:
                write_bill(found, folder)
        if "vulnerabilities" in parts:
            codes.add(ask(images))
        if "policy" in parts:
            codes.add(check_policies())
    except AuditError as reason:
        print(f"missing   {reason}")
        codes.add(EXIT_MISSING)
    return next(c for c in (EXIT_FINDING, EXIT_MISSING, EXIT_UNREACHABLE, EXIT_GOOD) if c in codes)


def main() -> int:
    """Run the audit; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--install", action="store_true", help="install what is missing")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "audit", help="folder")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts")
    options = parser.parse_args()
    try:
        if options.install and "policy" in options.only:
            CHECKOV.install()
        if options.install and {"bills", "vulnerabilities"} & set(options.only):
            BILLS.install()
    except AuditError as reason:
        print(f"missing   {reason}")
        return EXIT_MISSING
    return audit(options.only, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
