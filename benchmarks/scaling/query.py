"""What KEDA asks, as the chart renders it."""

from __future__ import annotations

import functools
import os
import subprocess

import yaml

from tools import helm, place


class RenderError(Exception):
    """helm is missing or refuses the values; the text says so."""


@functools.cache
def of_keda(namespace: str, release: str, *, models: str, target: float) -> str:
    """Return the PromQL of the default signal, summed over the pods of a release.

    Args:
        namespace: of the release.
        release: its name.
        models: regular expression of the models that count (`autoscaling.models`).
        target: `autoscaling.target`.

    Raises:
        RenderError: helm cannot render the chart.
    """
    values = {
        "modelStore": {"accessModes": ["ReadWriteMany"]},
        "autoscaling": {"enabled": True, "scaler": "keda", "models": models, "target": target},
    }
    words = ["helm", "template", release, str(helm.CHART), "--namespace", namespace]
    words += ["--show-only", "templates/scaledobject.yaml"]
    with helm.values_file(values) as file:
        try:
            done = subprocess.run(
                [*words, "--values", str(file)],
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": place.tool_path()},
                check=False,
            )
        except FileNotFoundError:
            raise RenderError("helm is not here; run: python3 -m cluster.binaries helm") from None
    if done.returncode != 0:
        raise RenderError(done.stderr.strip())
    (trigger,) = yaml.safe_load(done.stdout)["spec"]["triggers"]
    return str(trigger["metadata"]["query"])
