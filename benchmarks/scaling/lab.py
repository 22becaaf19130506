"""A real Triton with simulated models and a real Prometheus on this machine, without a cluster."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded_triton.server import Server, running_server
from lib.prometheus import Prometheus, running
from tools import wait
from tools.place import ROOT

NAMESPACE = "lab"
RELEASE = "lab"
# A name as a ReplicaSet of the chart gives it, because the rendered query looks for such.
POD = "lab-triton-5b6454d5f7-dq9z5"
SIMULATED = ROOT / "model_repository" / "simulated"
# What the chart renders for its servers.
METRICS = ("--metrics-config=summary_latencies=true", "--metrics-interval-ms=500")


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The running pair."""

    server: Server
    prometheus: Prometheus


def write_model(repository: Path, name: str, parameters: Mapping[str, object]) -> None:
    """Copy the simulated model under another name, with other parameters."""
    folder = repository / name
    shutil.copytree(SIMULATED, folder, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    for key, value in parameters.items():
        pattern = rf'(key: "{key}"\s*value \{{\s*string_value: )"[^"]*"'
        text, count = re.subn(pattern, rf'\g<1>"{value}"', text)
        if not count:
            entry = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
            text += entry
    config.write_text(text, encoding="utf-8")


def target_labels(pod: str) -> dict[str, str]:
    """Return the labels that a scrape of the chart's pods gives its series."""
    return {"namespace": NAMESPACE, "release": RELEASE, "pod": pod}


@contextlib.contextmanager
def running_lab(
    program: Path, folder: Path, models: Mapping[str, Mapping[str, object]], *, every: str = "1s"
) -> Iterator[Lab]:
    """Run both until the block ends.

    Args:
        program: the Prometheus binary.
        folder: for models, logs and data.
        models: parameters of the simulated models by name.
        every: pause between two scrapes.

    Raises:
        EmbeddedError: Triton does not start.
        TimeoutError: Prometheus does not start or does not scrape.
    """
    repository = folder / "models"
    repository.mkdir(parents=True)
    for name, parameters in models.items():
        write_model(repository, name, parameters)
    arguments = [f"--model-repository={repository}", *METRICS]
    with running_server(arguments=arguments, workdir=folder) as server:
        scrape: list[dict[str, Any]] = [
            {
                "job_name": "triton",
                "static_configs": [
                    {
                        "targets": [f"127.0.0.1:{server.ports.metrics}"],
                        "labels": target_labels(POD),
                    }
                ],
            }
        ]
        with running(program, folder, scrape=scrape, every=every) as prometheus:
            wait.until(lambda: bool(prometheus.query("triton_hf_slots")), seconds=30, every=0.2)
            yield Lab(server=server, prometheus=prometheus)
