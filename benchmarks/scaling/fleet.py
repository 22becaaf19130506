"""Step responses of several releases side by side: twenty of them in minutes.

Usage: python -m benchmarks.scaling.fleet --out DIR [--scaler hpa|keda] [--sync SECONDS]
       [--releases 2] [--rounds 10] [--model simulated|smollm2-135m] [--add]

Each release is the light image with a simulated model, or the full one with SmolLM2, in a namespace
of its own; its steps come at random moments that meet every part of the autoscaler's sync equally
often, because they make up most of the time to a decision. One release at a time has load, so that
pods start on a node with room: while one grows, the others go back. `--sync` changes how often the
autoscaler of the embedded cluster looks, for the time of the run.
Writes DIR/fleet.json and DIR/fleet.png, and for the first release DIR/step.json and DIR/step.png as
benchmarks.scaling.step does; the exit codes are the same. `--add` adds the rounds to those of the
same model, scaler and sync in DIR, for a mean that chance moves less.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.scaling import step, step_plot
from benchmarks.scaling.rounds import Plan, Round
from cluster import plan as cluster_plan
from lib import scaled_release as releases
from tools import helm, place, wait
from tools.helm import Release

PLAN = Plan(target=releases.TARGET, low_seconds=8.0, high_seconds=90.0, settle_seconds=180.0)
SYNC_SECONDS = 15.0  # the longest time between two looks of the autoscaler
_SYNC = re.compile(r"(?<=--horizontal-pod-autoscaler-sync-period=)[\w.]+")


@contextlib.contextmanager
def hpa_sync(here: place.Place, seconds: int | None) -> Iterator[str]:
    """Let the autoscaler look every so many seconds in the block; yield the period in force.

    None leaves it as it is. The manifest of the controller manager is written anew, which
    restarts it, and again when the block ends.

    Raises:
        CommandFailedError: the cluster is not ours to change.
    """
    if not here.embedded:
        if seconds is not None:
            raise helm.CommandFailedError(
                "--sync changes the embedded cluster, but KUBECONFIG names another one"
            )
        yield "unknown"
        return
    folder = cluster_plan.SYSTEM.folder / "etc-kubernetes" / "manifests"
    manifest = folder / "kube-controller-manager.yaml"
    before = manifest.read_text("utf-8")
    found = _SYNC.search(before)
    if found is None:
        raise helm.CommandFailedError(f"{manifest} does not say how often the autoscaler looks")
    if seconds is None or found.group() == f"{seconds}s":
        yield found.group()
        return
    try:
        _replace(here, manifest, _SYNC.sub(f"{seconds}s", before))
        yield f"{seconds}s"
    finally:
        _replace(here, manifest, before)


def _replace(here: place.Place, manifest: Path, text: str) -> None:
    """Write the manifest at once, and wait until what it says runs and leads.

    The kubelet shows a changed static pod as a new pod, with the words of its manifest; it works
    once the lease of the one before has run out.
    """
    leader = _leader(here)
    found = _SYNC.search(text)
    period = found.group() if found else ""
    draft = manifest.parent.parent / "kube-controller-manager.draft"
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o600)
    draft.replace(manifest)

    def renewed() -> None:
        (pod,) = helm.get(here, "kube-system", "pod", "-l", "component=kube-controller-manager")[
            "items"
        ]
        (container,) = pod["spec"]["containers"]
        (status,) = pod["status"]["containerStatuses"]
        option = f"--horizontal-pod-autoscaler-sync-period={period}"
        assert option in container["command"], "not restarted yet"
        assert status["ready"], "restarted, not ready yet"
        assert _leader(here) != leader, "ready, does not lead yet"

    wait.until(renewed, seconds=120)


def _leader(here: place.Place) -> str:
    """Return which controller manager works."""
    lease = helm.get(here, "kube-system", "lease", "kube-controller-manager")
    return str(lease["spec"]["holderIdentity"])


def moments(rounds: int, source: random.Random) -> list[float]:
    """Return for each round a moment within SYNC_SECONDS: one of each equal part, shuffled."""
    parts = [SYNC_SECONDS * (part + source.random()) / rounds for part in range(rounds)]
    source.shuffle(parts)
    return parts


def play(
    made: Release, number: int, rounds: int, model: str, out: Path, turn: threading.Lock
) -> tuple[list[Round], list[str]]:
    """Play the rounds of one release; return them and the faults of its requests.

    The first release's last step is drawn over time.
    """
    labels = f'namespace="{made.namespace}", release="{made.name}"'
    played: list[Round] = []
    with step.staged(made, model, prometheus=None, labels=labels, turn=turn, max_tokens=32) as (
        stage,
        _,
    ):
        for count, moment in enumerate(moments(rounds, random.SystemRandom())):
            low = PLAN.low_seconds + moment
            played.append(step.run_round(stage, dataclasses.replace(PLAN, low_seconds=low)))
            step.say(f"release {number}, round {count + 1} of {rounds}: {played[-1]}")
        faults = sorted({outcome.fault for outcome in stage.driver.record.failed})
        if number == 1:
            step.write(out, PLAN, played, stage, f"One step of the load, {model}")
    return played, faults


def run(
    here: place.Place, *, scaler: str, count: int, rounds: int, model: str, out: Path
) -> tuple[list[Round], list[str]]:
    """Install the releases, play all rounds, remove everything; return rounds and faults."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as pool:

        def install(number: int) -> Release:
            step.say(f"installs release {number} of {count}")
            name = f"fleet-{scaler}-{uuid.uuid4().hex[:5]}"
            return stack.enter_context(releases.installed(here, name, scaler=scaler, model=model))

        # The first one alone: it may have to teach the adapter a rule that all share.
        made = [install(1), *pool.map(install, range(2, count + 1))]
        words = ([each] * count for each in (rounds, model, out, threading.Lock()))
        results = list(pool.map(play, made, range(1, count + 1), *words))
    played = [each for part, _ in results for each in part]
    return played, sorted({fault for _, part in results for fault in part})


def report(
    played: Sequence[Round],
    faults: Sequence[str],
    *,
    scaler: str,
    sync: str,
    count: int,
    model: str = releases.MODEL,
) -> dict[str, Any]:
    """Return what is written as fleet.json; all times in seconds after the step."""
    return {
        "model": model,
        "scaler": scaler,
        "sync": sync,
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "releases": count,
        "rounds": len(played),
        "cores": os.cpu_count(),
        "plan": dataclasses.asdict(PLAN),
        "requests": sum(each.requests for each in played),
        "failed": sum(each.failed for each in played),
        "faults": list(faults)[:10],
        "ready_after_decided_seconds": sorted(
            round(each.ready_seconds - each.decided_seconds, 3)
            for each in played
            if each.ready_seconds is not None and each.decided_seconds is not None
        ),
        "summary": step.summary(played),
        "played": [dataclasses.asdict(each) for each in played],
    }


def check_same(earlier: dict[str, Any], **now: Any) -> None:
    """See that what is measured now can be added to a report.

    Raises:
        CommandFailedError: it measures something else.
    """
    for what, value in now.items():
        if value != earlier[what]:
            raise helm.CommandFailedError(
                f"--add needs a report of the same {what}: it is {earlier[what]!r} there, "
                f"and {value!r} now; choose another --out"
            )


def table(found: dict[str, Any]) -> str:
    """Return mean, median and worst of each time as lines for a terminal."""
    lines = [
        f"{found['model']}, {found['scaler']}, sync {found['sync']}: {found['rounds']} steps, "
        f"{found['failed']} of {found['requests']} requests failed",
        f"{'seconds after the step':<26}{'mean':>8}{'median':>8}{'worst':>8}{'steps':>7}",
    ]
    for field in step_plot.MARKS:
        if field in found["summary"]:
            known = found["summary"][field]
            lines.append(
                f"{step_plot.MARKS[field]:<26}{known['mean']:>8.1f}{known['median']:>8.1f}"
                f"{known['worst']:>8.1f}{known['rounds']:>7}"
            )
    return "\n".join(lines)


def main() -> int:
    """Run, write, print; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling.fleet", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--scaler", choices=("hpa", "keda"), default="hpa")
    parser.add_argument("--sync", type=int, help="seconds between two looks of the autoscaler")
    parser.add_argument("--releases", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="of each release")
    parser.add_argument(
        "--model", choices=(releases.MODEL, releases.SMOLLM2), default=releases.MODEL
    )
    parser.add_argument("--add", action="store_true", help="to what DIR holds already")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kept = options.out / "fleet.json"
    earlier = json.loads(kept.read_text("utf-8")) if options.add and kept.is_file() else None
    try:
        here = place.current()
        with hpa_sync(here, options.sync) as sync:
            if earlier:
                now = {"model": options.model, "scaler": options.scaler, "sync": sync}
                check_same(earlier, **now, cores=os.cpu_count())
            played, faults = run(
                here,
                scaler=options.scaler,
                count=options.releases,
                rounds=options.rounds,
                model=options.model,
                out=options.out,
            )
    except (helm.CommandFailedError, TimeoutError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    if earlier:
        played = [*(Round(**each) for each in earlier["played"]), *played]
        faults = [*earlier["faults"], *faults]
    found = report(
        played,
        faults,
        scaler=options.scaler,
        sync=sync,
        count=options.releases,
        model=options.model,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    step_plot.draw_all(options.out / "fleet.png", played, title=table(found).splitlines()[0])
    print(table(found))
    print(kept)
    return 3 if found["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
