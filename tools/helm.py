"""One Helm release of a chart of ours, and the kubectl calls around it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.place import ROOT, Place

CHART = ROOT / "charts" / "triton"


class CommandFailedError(AssertionError):
    """helm or kubectl said no; the text is what it printed."""


def run(place: Place, *words: str, stdin: str | None = None, timeout: float = 600) -> str:
    """Run helm or kubectl against `place`; return its stdout.

    Raises:
        CommandFailedError: when the exit code is not 0.
    """
    done = subprocess.run(
        words,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=place.environment(),
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise CommandFailedError(f"{' '.join(words[:6])}: {said}")
    return done.stdout


def get(place: Place, namespace: str, kind: str, *words: str) -> Any:
    """Return `kubectl get KIND` as parsed JSON."""
    return json.loads(run(place, "kubectl", "-n", namespace, "get", kind, *words, "-o", "json"))


@contextmanager
def values_file(values: dict[str, Any]) -> Iterator[Path]:
    """Write values where helm can read them, for the time of one call."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        yield Path(file.name)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release of charts/triton (or of `chart`) in one namespace."""

    place: Place
    namespace: str
    name: str
    chart: Path = CHART

    def apply(
        self,
        values: dict[str, Any],
        *,
        wait: bool = True,
        timeout: int = 300,
        files: tuple[Path, ...] = (),
        last: tuple[Path, ...] = (),
    ) -> str:
        """Install or upgrade, and with `wait` return only when everything is ready.

        Args:
            values: what counts more than `files`, and less than `last`.
            wait: whether everything must be ready.
            timeout: seconds that this may take.
            files: files of values.
            last: more of them.
        """
        with values_file(values) as file:
            named = [word for each in (*files, file, *last) for word in ("-f", str(each))]
            return run(
                self.place,
                *("helm", "upgrade", "--install", self.name, str(self.chart)),
                *("-n", self.namespace, *named, "--timeout", f"{timeout}s"),
                *(["--wait"] if wait else []),
                timeout=timeout + 30,
            )

    def uninstall(self) -> None:
        """Uninstall and wait until what the release owned is gone."""
        run(self.place, "helm", "uninstall", self.name, "-n", self.namespace, "--wait")

    def test(self) -> str:
        """Run `helm test`; return its output with the logs of the test pods."""
        return run(self.place, "helm", "test", self.name, "-n", self.namespace, "--timeout", "180s")

    def selector(self, component: str = "server") -> str:
        """Return the label selector of one component of this release."""
        return ",".join(
            (
                f"app.kubernetes.io/instance={self.name}",
                f"app.kubernetes.io/component={component}",
            )
        )

    def pods(self, component: str = "server") -> list[dict[str, Any]]:
        """Return this release's pods of one component that are not being deleted."""
        found = get(self.place, self.namespace, "pods", "-l", self.selector(component))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def logs(self, component: str = "server") -> str:
        """Return the logs of all containers of one component, init containers too."""
        return run(
            self.place,
            *("kubectl", "-n", self.namespace, "logs", "-l", self.selector(component)),
            *("--all-containers", "--tail=200", "--prefix"),
        )
