"""Ask a Prometheus, run one on this machine, or reach the one in the cluster."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools import wait
from tools.place import Place, cache

NAMESPACE = "monitoring"


class PrometheusError(Exception):
    """Prometheus refused a query or cannot be reached; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of an answer.

    Attributes:
        labels: its labels; `__name__` where the query kept it.
        times: Unix times in seconds.
        values: one value for each time; NaN where Prometheus says so.
    """

    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """The HTTP API of one Prometheus at `url`."""

    url: str

    def query(self, expression: str, *, time: float | None = None) -> list[Series]:
        """Return the value of each series of an expression, now or at a Unix time.

        Raises:
            PrometheusError: the expression is wrong, or nobody answers.
        """
        parameters = {"query": expression} | ({} if time is None else {"time": f"{time:.3f}"})
        data = self.get("query", **parameters)
        if data["resultType"] == "scalar":
            return [_series({"metric": {}, "values": [data["result"]]})]
        return [_series({**item, "values": [item["value"]]}) for item in data["result"]]

    def query_range(
        self, expression: str, *, start: float, end: float, step: float
    ) -> list[Series]:
        """Return every series of an expression from `start` to `end`, a value each `step` seconds.

        Raises:
            PrometheusError: the expression is wrong, or nobody answers.
        """
        times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        return [
            _series(item) for item in self.get("query_range", query=expression, **times)["result"]
        ]

    def samples(self, selector: str, *, start: float, end: float) -> list[Series]:
        """Return the samples as they were scraped, at the times of the scrapes."""
        seconds = math.ceil(end - start)
        data = self.get("query", query=f"{selector}[{seconds}s]", time=f"{end:.3f}")
        return [_series(item) for item in data["result"]]

    def label_values(self, label: str, selector: str) -> list[str]:
        """Return the values of a label among the series that a selector finds, sorted."""
        name = urllib.parse.quote(label, safe="")
        return sorted(self.get(f"label/{name}/values", **{"match[]": selector}))

    def targets(self) -> list[dict[str, Any]]:
        """Return the targets that are scraped."""
        return list(self.get("targets", state="active")["activeTargets"])

    def rules(self) -> list[dict[str, Any]]:
        """Return all loaded rules, recording and alerting."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """Return `data` of one call of the HTTP API.

        Raises:
            PrometheusError: it answers with an error, or not at all.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            raise PrometheusError(f"{path}: {reason}; query: {parameters.get('query')}") from None
        except OSError as error:
            raise PrometheusError(f"no Prometheus answers at {self.url}: {error}") from None


def _series(item: Mapping[str, Any]) -> Series:
    return Series(
        labels=item["metric"],
        times=tuple(float(time) for time, _ in item["values"]),
        values=tuple(float(value) for _, value in item["values"]),
    )


def binary(name: str = "prometheus") -> Path | None:
    """Return `prometheus` or `promtool` as built here or installed; None when there is none."""
    built = sorted(cache().glob(f"bin/prometheus-*/{name}"))
    if built:
        return built[-1]
    found = shutil.which(name)
    return Path(found) if found else None


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(
    program: Path, folder: Path, *, scrape: list[dict[str, Any]], every: str = "1s"
) -> Iterator[Prometheus]:
    """Run a Prometheus on loopback with its data in `folder` until the block ends.

    Args:
        program: the binary.
        folder: where its configuration and data go; existing data are kept.
        scrape: the list `scrape_configs`.
        every: pause between two scrapes.

    Raises:
        TimeoutError: it does not start; its log is `folder`/prometheus.log.
    """
    config = folder / "prometheus.yml"
    config.write_text(
        yaml.safe_dump({"global": {"scrape_interval": every}, "scrape_configs": scrape})
    )
    port = free_port()
    command = [str(program), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=10y"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    made = Prometheus(url=f"http://127.0.0.1:{port}")
    try:
        wait.until(made.ready, seconds=30, every=0.1)
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextlib.contextmanager
def in_cluster(place: Place, *, service: str = "prometheus") -> Iterator[Prometheus]:
    """Forward a loopback port to the Prometheus of the cluster until the block ends.

    Raises:
        TimeoutError: the Service does not exist or has no ready pod.
    """
    port = free_port()
    words = ["kubectl", "-n", NAMESPACE, "port-forward", f"service/{service}", f"{port}:9090"]
    process = subprocess.Popen(
        words, env=place.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    made = Prometheus(url=f"http://127.0.0.1:{port}")
    try:
        wait.until(made.ready, seconds=30, every=0.2)
        yield made
    finally:
        process.terminate()
        process.wait(10)
