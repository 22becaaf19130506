"""Write down when Kubernetes decides, schedules and gets ready, as it happens.

The API server's watches tell each change within milliseconds and cost no polling; the times are
those of this machine's clock, like those of the load.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError

from tools.place import Place


@dataclass(frozen=True, kw_only=True)
class Change:
    """A number changed: `what` is wanted, desired, scheduled or ready."""

    at: float
    what: str
    value: int


@dataclass
class Timeline:
    """Changes in the order in which they were seen; safe to read while watching."""

    changes: list[Change] = field(default_factory=list)

    def add(self, what: str, value: int) -> None:
        """Write down a value, unless it is the one that was there."""
        last = self.last(what)
        if last is None or last.value != value:
            self.changes.append(Change(at=time.time(), what=what, value=value))

    def last(self, what: str) -> Change | None:
        """Return the newest change of a value."""
        for change in reversed(self.changes):
            if change.what == what:
                return change
        return None

    def value(self, what: str) -> int:
        """Return what it is now; 0 when nothing was seen."""
        found = self.last(what)
        return 0 if found is None else found.value

    def first(self, what: str, after: float, good: Callable[[int], bool]) -> float | None:
        """Return when a value was first good after a time; None when never."""
        for change in self.changes[:]:
            if change.what == what and change.at >= after and good(change.value):
                return change.at
        return None

    def steps(self, what: str) -> list[tuple[float, int]]:
        """Return (time, value) of every change of a value."""
        return [(change.at, change.value) for change in self.changes if change.what == what]


class Watcher:
    """Follows Deployment, autoscaler and pods of one release until the block ends.

    The timeline has `wanted` (spec.replicas of the Deployment), `desired` (what the autoscaler
    decided; equal to `wanted` where none is), `scheduled` and `ready` (pods that have a node, that
    are ready).
    """

    def __init__(self, place: Place, namespace: str, deployment: str, selector: str) -> None:
        """Prepare; nothing is asked before the block starts."""
        configuration = client.Configuration()
        config.load_kube_config(str(place.kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
        api = client.ApiClient(configuration)
        self.timeline = Timeline()
        self._namespace = namespace
        self._deployment = deployment
        self._selector = selector
        self._apps = client.AppsV1Api(api)
        self._core = client.CoreV1Api(api)
        self._scaling = client.AutoscalingV2Api(api)
        self._pods: dict[str, Mapping[str, bool]] = {}
        self._watches: list[watch.Watch] = []
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Watcher:
        """Start one thread for each kind."""
        kinds: list[tuple[Any, dict[str, Any], Callable[[str, Any], None]]] = [
            (self._apps.list_namespaced_deployment, {}, self._on_deployment),
            (self._scaling.list_namespaced_horizontal_pod_autoscaler, {}, self._on_autoscaler),
            (
                self._core.list_namespaced_pod,
                {"label_selector": self._selector},
                self._on_pod,
            ),
        ]
        for call, words, handle in kinds:
            thread = threading.Thread(target=self._follow, args=(call, words, handle), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; the threads end with their connection."""
        self._stopping.set()
        for running in self._watches:
            running.stop()  # type: ignore[no-untyped-call]

    def ready_pods(self) -> list[str]:
        """Return the names of the pods that are ready now."""
        return [name for name, known in list(self._pods.items()) if known.get("Ready", False)]

    def _follow(self, call: Any, words: dict[str, Any], handle: Callable[[str, Any], None]) -> None:
        while not self._stopping.is_set():
            stream = watch.Watch()  # type: ignore[no-untyped-call]
            self._watches.append(stream)
            with contextlib.suppress(client.ApiException, HTTPError, OSError):
                events: Any = stream.stream  # the client has no types
                for event in events(call, self._namespace, timeout_seconds=300, **words):
                    if self._stopping.is_set():
                        return
                    handle(event["type"], event["object"])
            self._stopping.wait(0.5)

    def _on_deployment(self, kind: str, found: Any) -> None:
        if found.metadata.name == self._deployment and kind != "DELETED":
            self.timeline.add("wanted", found.spec.replicas)

    def _on_autoscaler(self, kind: str, found: Any) -> None:
        mine = found.spec.scale_target_ref.name == self._deployment
        if (
            mine
            and kind != "DELETED"
            and found.status is not None
            and found.status.desired_replicas
        ):
            self.timeline.add("desired", found.status.desired_replicas)

    def _on_pod(self, kind: str, pod: Any) -> None:
        name = pod.metadata.name
        gone = kind == "DELETED" or pod.metadata.deletion_timestamp is not None
        if gone:
            self._pods.pop(name, None)
        else:
            known = {item.type: item.status == "True" for item in pod.status.conditions or []}
            self._pods[name] = known
        for what, condition in (("scheduled", "PodScheduled"), ("ready", "Ready")):
            self.timeline.add(
                what, sum(known.get(condition, False) for known in self._pods.values())
            )
