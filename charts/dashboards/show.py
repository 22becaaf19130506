"""Draw the chart's dashboards from a release that scales: its load goes up and down again.

Usage: python -m dashboards.show --out DIR
Installs the light image with a simulated model and an HPA, sends calls and streams, and draws what
Prometheus saw into DIR. No GPU is there: that dashboard shows the made-up numbers of
`dashboards.standin`.
Exit codes: 0 drawn, 1 the cluster is not as needed, 3 requests failed or a query has no data.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from functools import partial
from pathlib import Path

from dashboards import draw, standin
from lib import offered_load
from lib import scaled_release as releases
from lib.prometheus import PrometheusError, in_cluster
from lib.watch import Watcher
from tools import helm, install, place, wait
from tools.helm import Release
from triton_hf.progress import Progress

LOW, HIGH, STREAMS = 1, 10, 1
HOLD_SECONDS = 90.0


PROGRESS = Progress("show")
say = PROGRESS.say


def are_ready(watcher: Watcher, pods: int) -> bool:
    """Return whether so many pods are ready."""
    return watcher.timeline.value("ready") == pods


def play(release: Release) -> int:
    """Send a low load, a high one and a low one again; return how many requests failed."""
    door = install.door(release.place, release)
    words = {"host": door.host, "text": "one two three"}
    call = offered_load.infer(door.address, door.port, releases.MODEL, **words)
    flow = offered_load.stream(door.address, door.port, releases.MODEL, **words)
    (deployment,) = helm.get(release.place, release.namespace, "deployment")["items"]
    name = deployment["metadata"]["name"]
    with (
        Watcher(release.place, release.namespace, name, release.selector()) as watcher,
        offered_load.Load([call]) as calls,
        offered_load.Load([flow]) as streams,
    ):
        streams.clients(STREAMS)
        for clients, pods in ((LOW, 1), (HIGH, 4), (LOW, 1)):
            say(f"{clients} calls and {STREAMS} stream in flight")
            calls.clients(clients)
            wait.until(partial(are_ready, watcher, pods), seconds=240)
            time.sleep(HOLD_SECONDS)
    sent = [*calls.record.outcomes, *streams.record.outcomes]
    failed = sum(bool(outcome.fault) for outcome in sent)
    say(f"{failed} of {len(sent)} requests failed")
    return failed


def main() -> int:
    """Install, play, draw; return the exit code."""
    parser = argparse.ArgumentParser(prog="dashboards.show", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the PNG files")
    options = parser.parse_args()
    here = place.current()
    namespace = f"show-{uuid.uuid4().hex[:5]}"
    try:
        with releases.installed(here, namespace) as release, in_cluster(here) as prometheus:
            standin.serve(release)
            start = time.time()
            failed = play(release)
            files, missing = draw.draw_all(
                prometheus,
                options.out,
                minutes=(time.time() - start) / 60,
                chosen={"namespace": namespace, "release": release.name},
            )
    except (helm.CommandFailedError, PrometheusError, TimeoutError) as error:
        print(f"show: {error}", file=sys.stderr)
        return 1
    for path in files:
        print(path)
    for sentence in missing:
        print(f"show: no data: {sentence}", file=sys.stderr)
    return 3 if failed or missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
