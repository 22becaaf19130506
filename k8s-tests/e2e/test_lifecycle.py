"""Install, upgrade and uninstall: what an operator sees, and what clients must not notice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lib.small import SIMULATED, several, values
from tools import helm, install, place
from tools.helm import CommandFailedError, Release
from tools.wait import until

from .conftest import GATED_TOKEN

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MakeRelease = Callable[..., Release]


def objects(release: Release, kind: str) -> set[str]:
    found = helm.get(
        release.place, release.namespace, kind, "-l", f"app.kubernetes.io/instance={release.name}"
    )
    return {each["metadata"]["name"] for each in found["items"]}


def endpoints(release: Release) -> set[str]:
    slices = helm.get(
        release.place,
        release.namespace,
        "endpointslice",
        "-l",
        f"app.kubernetes.io/instance={release.name}",
    )["items"]
    return {a for s in slices for e in s.get("endpoints") or [] for a in e["addresses"]}


def test_two_releases_in_one_namespace_do_not_meet(
    here: place.Place, make_release: MakeRelease
) -> None:
    first, second = make_release("first"), make_release("second")
    first.apply(values(here, f"first-{first.namespace}.test", models={"alpha": SIMULATED}))
    second.apply(values(here, f"second-{first.namespace}.test", models={"beta": SIMULATED}))
    one, two = install.door(here, first), install.door(here, second)
    assert one.infer("alpha", "hello", max_tokens=1)["completion_tokens"] == 1
    assert two.infer("beta", "hello", max_tokens=1)["completion_tokens"] == 1
    assert one.request("GET", "/v2/models/beta/ready")[0] == 404
    assert two.request("GET", "/v2/models/alpha/ready")[0] == 404
    assert endpoints(first).isdisjoint(endpoints(second))
    first.uninstall()
    assert two.infer("beta", "still here", max_tokens=1)["completion_tokens"] == 1


@pytest.mark.parametrize("keep", [True, False])
def test_uninstall_keeps_claim_and_secret_where_the_values_say_so(
    here: place.Place, make_release: MakeRelease, keep: bool
) -> None:
    release = make_release()
    chosen = values(here, f"{release.namespace}.test")
    chosen["modelStore"]["keep"] = keep
    chosen.setdefault("huggingface", {})["token"] = {"value": GATED_TOKEN, "keep": keep}
    release.apply(chosen)
    claims, token = objects(release, "pvc"), f"{release.name}-huggingface"
    assert claims
    assert token in objects(release, "secret")
    release.uninstall()

    def settled() -> None:
        assert objects(release, "pvc") == (claims if keep else set())
        assert (token in objects(release, "secret")) is keep

    until(settled, seconds=60)


def test_an_upgrade_adds_a_model_and_the_old_one_answers_on(
    here: place.Place, make_release: MakeRelease
) -> None:
    release = make_release()
    host = f"{release.namespace}.test"
    chosen = values(here, host, models={"alpha": SIMULATED})
    chosen = several(chosen, release.name, 2)
    release.apply(chosen)
    entrance = install.door(here, release)
    assert entrance.request("GET", "/v2/models/beta/ready")[0] == 404
    release.apply({**chosen, "models": {**chosen["models"], "beta": SIMULATED}})
    assert entrance.infer("alpha", "hello", max_tokens=1)["completion_tokens"] == 1
    assert entrance.infer("beta", "hello", max_tokens=1)["completion_tokens"] == 1


def test_a_store_for_one_node_can_be_upgraded_while_no_server_has_a_node(
    here: place.Place, make_release: MakeRelease
) -> None:
    release = make_release()
    chosen = values(here, f"{release.namespace}.test") | {"replicas": 1}
    store = {"storageClass": None, "accessModes": ["ReadWriteOnce"]}
    chosen["modelStore"] = chosen["modelStore"] | store
    nowhere = {"nodeSelector": {"kubernetes.io/hostname": "nowhere"}}
    release.apply(chosen | nowhere, wait=False)
    release.apply(chosen)
    entrance = install.door(here, release)
    assert entrance.infer("simulated", "hello", max_tokens=1)["completion_tokens"] == 1


def test_a_broken_model_never_becomes_ready_says_why_and_old_pods_serve_on(
    here: place.Place, make_release: MakeRelease
) -> None:
    release = make_release()
    chosen = values(here, f"{release.namespace}.test", models={"alpha": SIMULATED})
    chosen = several(chosen, release.name, 2)
    release.apply(chosen)
    entrance = install.door(here, release)
    old = {pod["metadata"]["name"] for pod in release.pods()}
    # It downloads, so model-sync is content; the light image cannot load it.
    broken = {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    release.apply({**chosen, "models": {**chosen["models"], "broken": broken}}, wait=False)

    def says_why() -> None:
        fresh = [p for p in release.pods() if p["metadata"]["name"] not in old]
        assert fresh, "no new pod yet"
        name = fresh[0]["metadata"]["name"]
        assert "this image lacks the package" in logs(release, name), "it does not say why"

    until(says_why, seconds=120)
    for pod in release.pods():
        ready = all(c["ready"] for c in pod["status"].get("containerStatuses", []))
        assert ready is (pod["metadata"]["name"] in old)
    answers = [entrance.infer("alpha", "hello", max_tokens=1) for _ in range(20)]
    assert len(answers) == 20


def logs(release: Release, pod: str) -> str:
    words = ("kubectl", "-n", release.namespace, "logs", pod, "--all-containers", "--tail=200")
    text = helm.run(release.place, *words)
    try:
        return text + helm.run(release.place, *words, "--previous")
    except CommandFailedError:  # it has not restarted yet
        return text


GATED = {"repository": "example/gated-smollm2", "parameters": {"device": "cpu", "slots": 2}}


def sync_failure(release: Release) -> str:
    """Return what the failed model-sync pod said, from its termination message."""

    def said() -> str:
        for pod in release.pods("model-sync"):
            for status in pod["status"].get("containerStatuses", []):
                ended = status["state"].get("terminated") or {}
                if ended.get("exitCode"):
                    return str(ended.get("message", ""))
        raise AssertionError("model-sync has not failed yet")

    return until(said, seconds=120)


@pytest.mark.parametrize(
    ("token", "model", "words"),
    [
        pytest.param("", GATED, ["example/gated-smollm2", "token"], id="gated, no token"),
        pytest.param("hf_wrong", GATED, ["example/gated-smollm2", "token"], id="wrong token"),
        pytest.param(
            GATED_TOKEN,
            {**GATED, "revision": "0" * 40},
            ["example/gated-smollm2", "0" * 40],
            id="unknown revision",
        ),
    ],
)
def test_a_model_that_cannot_be_had_is_one_sentence_in_the_job(
    here: place.Place,
    make_release: MakeRelease,
    token: str,
    model: dict[str, Any],
    words: list[str],
) -> None:
    if not here.embedded:
        pytest.skip("needs the gated repository of the embedded cluster's Hub mirror")
    release = make_release()
    chosen = values(here, f"{release.namespace}.test", models={"gated": model})
    if token:
        chosen["huggingface"]["token"] = {"value": token}
    release.apply(chosen, wait=False)
    message = sync_failure(release)
    assert all(word in message for word in words), message
    assert len(message.strip().splitlines()) == 1, message
    assert "Traceback" not in message
    if token:
        assert token not in message


def test_the_token_reaches_only_the_sync_job(here: place.Place, make_release: MakeRelease) -> None:
    if not here.embedded:
        pytest.skip("needs the gated repository of the embedded cluster's Hub mirror")
    release = make_release()
    install.ensure_token(here, release.namespace, "mine", GATED_TOKEN)
    chosen = values(here, f"{release.namespace}.test", models={"gated": GATED}, light=False)
    chosen["huggingface"]["token"] = {"existingSecret": "mine"}
    release.apply(chosen)
    (server,) = release.pods()
    assert "mine" not in json.dumps(server["spec"])
    (sync,) = release.pods("model-sync")
    assert "mine" in json.dumps(sync["spec"]["volumes"])
    assert GATED_TOKEN not in json.dumps(sync)
    seen = helm.run(
        here,
        *("kubectl", "-n", release.namespace, "exec", server["metadata"]["name"], "--"),
        *("sh", "-c", "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"),
    )
    assert "HF_HUB_OFFLINE=1" in seen
    for text in (
        seen,
        release.logs(),
        release.logs("model-sync"),
        helm.run(here, "helm", "get", "all", release.name, "-n", release.namespace),
        helm.run(here, "kubectl", "-n", release.namespace, "get", "events", "-o", "json"),
    ):
        assert GATED_TOKEN not in text
    outputs = install.door(here, release).infer("gated", "Say hello.", max_tokens=5)
    assert outputs["completion_tokens"] >= 1
    assert outputs["text_output"].strip()
