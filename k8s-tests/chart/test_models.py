"""Models: what the sync Job downloads, who waits for it, and what an upgrade does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, Manifest, Object, RenderError, mappings, render
from triton_hf.models.repository import read_model

pytestmark = pytest.mark.chart
SMOL = {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct"}
WIDE = {"accessModes": ["ReadWriteMany"]}
ONE = {"llama3-8b": None, "smol": SMOL}


def job_pod(manifest: Manifest) -> Object:
    return dict(manifest.one("Job")["spec"]["template"]["spec"])


def spec(manifest: Manifest) -> Any:
    """Return the models as the Job's pod reads them: through its own annotation."""
    template = manifest.one("Job")["spec"]["template"]
    volume = next(v for v in template["spec"]["volumes"] if v["name"] == "spec")
    (item,) = volume["downwardAPI"]["items"]
    name = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    return json.loads(template["metadata"]["annotations"][name])


def generations(manifest: Manifest) -> set[str]:
    """Return every generation that a word of a command line names."""
    deployment = manifest.one("Deployment")["spec"]["template"]["spec"]
    containers = [*deployment["initContainers"], *deployment["containers"]]
    containers += job_pod(manifest)["containers"]
    words = [word for container in containers for word in container["args"]]
    named = [w.rpartition("=")[2] for w in words if w.startswith("--generation=")]
    named += [w.rpartition("/")[2] for w in words if w.startswith("--model-repository=")]
    assert len(named) == 3
    return set(named)


def test_the_job_reads_the_models_as_the_image_wants_them() -> None:
    parameters = {"slots": 8, "temperature": 0.7, "max_queue": 1000000, "gated": True}
    model = {**SMOL, "revision": "main", "parameters": parameters}
    sim = {"engine": "simulated"}
    values = {"models": {"llama3-8b": None, "smol": model, "sim": sim}}
    assert spec(render(values)) == {
        "models": {
            "sim": {"engine": "simulated", "parameters": {}},
            "smol": {
                "engine": "auto",
                "repository": SMOL["repository"],
                "revision": "main",
                "parameters": {
                    "slots": "8",
                    "temperature": "0.7",
                    "max_queue": "1000000",
                    "gated": "true",
                },
            },
        }
    }


def test_a_stated_task_reaches_the_job() -> None:
    model = {**SMOL, "task": "embed", "parameters": {"matryoshka": True}}
    found = spec(render({"models": {"llama3-8b": None, "e": model}}))["models"]["e"]
    assert (found["task"], found["parameters"]) == ("embed", {"matryoshka": "true"})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {**SMOL, "task": "embed", "parameters": {"top_p": 1}},
            "top_p is no parameter of the engine",
        ),
        ({**SMOL, "task": "text", "parameters": {"dimensions": 8}}, "for the task text: remove it"),
        ({"engine": "simulated", "task": "embed"}, "the engine simulated computes text"),
        ({**SMOL, "task": "translate"}, "task"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(model: dict[str, Any], words: str) -> None:
    with pytest.raises(RenderError, match=words):
        render({"models": {"llama3-8b": None, "e": model}})


def test_parameters_of_any_task_fit_while_none_is_stated() -> None:
    model = {**SMOL, "parameters": {"dimensions": 8}}
    assert spec(render({"models": {"llama3-8b": None, "e": model}}))["models"]["e"]


def test_arguments_of_vllm_are_a_mapping_in_the_values() -> None:
    engine_args = {"block_size": 16, "gpu_memory_utilization": 0.5}
    model = {**SMOL, "engine": "vllm", "parameters": {"engine_args": engine_args}}
    read = spec(render({"models": {"llama3-8b": None, "smol": model}}))
    given = read["models"]["smol"]["parameters"]["engine_args"]
    assert given == '{"block_size":16,"gpu_memory_utilization":0.5}'


def test_job_waiter_and_server_mean_the_same_generation() -> None:
    assert len(generations(render())) == 1


@pytest.mark.parametrize(
    ("changed", "new"),
    [
        ({"models": {"x": SMOL}}, True),
        ({"models": {"llama3-8b": {"parameters": {"slots": 4}}}}, True),
        ({"image": {"tag": "9"}}, True),
        ({"modelSync": {"backoffLimit": 9}}, False),
        ({"resources": {"requests": {"cpu": 9}}}, False),
        ({"models": {"llama3-8b": {"gated": False}}}, False),
    ],
)
def test_a_generation_changes_with_models_and_image_only(changed: Object, new: bool) -> None:
    assert (generations(render()) != generations(render(changed))) is new


def test_releases_that_share_a_claim_have_generations_of_their_own() -> None:
    one, other, elsewhere = render(), render(release="other"), render(namespace="elsewhere")
    assert not generations(one) & generations(other)
    assert not generations(one) & generations(elsewhere)
    words = job_pod(one)["containers"][0]["args"]
    assert "--owner=models/rel-triton" in words
    assert "--keep=3" in words


@pytest.mark.parametrize(
    "changed",
    [
        {"models": {"x": SMOL}},
        {"modelSync": {"backoffLimit": 9}},
        {"modelSync": {"attempt": 2}},
        {"huggingface": {"endpoint": "http://hub.example.com"}},
        {"podSecurityContext": {"fsGroup": 5}},
        {"modelStore": {"existingClaim": "x"}},
    ],
)
def test_a_changed_job_is_another_job(changed: Object) -> None:
    """A Job's template cannot be changed, so an upgrade must never try."""
    before, after = render().one("Job"), render(changed).one("Job")
    assert before["spec"] != after["spec"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


@pytest.mark.parametrize("changed", [{"commonLabels": {}}, {"ingress": {"enabled": True}}])
def test_an_unchanged_job_keeps_its_name(changed: Object) -> None:
    assert render().one("Job") == render(changed).one("Job")


def test_an_install_runs_the_job_beside_the_servers() -> None:
    """A hook before the install could not mount the claim that the install makes."""
    assert "annotations" not in render().one("Job")["metadata"]


def test_an_upgrade_downloads_before_any_server_is_touched() -> None:
    annotations = render(upgrade=True).one("Job")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-upgrade,pre-rollback"
    assert annotations["helm.sh/hook-output-log-policy"] == "hook-failed"


def test_each_upgrade_removes_the_job_that_an_earlier_one_left() -> None:
    changed = {"modelSync": {"attempt": 2}}
    jobs = [render(upgrade=True).one("Job"), render(changed, upgrade=True).one("Job")]
    assert {job["metadata"]["name"] for job in jobs} == {"rel-triton-sync-upgrade"}
    policy = jobs[0]["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert "before-hook-creation" in policy.split(",")


def test_on_one_node_the_hook_follows_servers_and_waits_for_none_that_have_no_node() -> None:
    """A pod that its own affinity selects passes where no other pod matches."""
    manifest = render({"replicas": 1, "nodeSelector": {"pool": "gpu"}}, upgrade=True)
    pod = job_pod(manifest)
    (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    selector = term["labelSelector"]
    labels = manifest.one("Job")["spec"]["template"]["metadata"]["labels"]
    (expression,) = selector["matchExpressions"]
    assert expression["operator"] == "In"
    assert {labels[expression["key"]], "server"} == set(expression["values"])
    assert selector["matchLabels"].items() <= labels.items()
    server = manifest.one("Deployment")["spec"]["template"]
    assert selector["matchLabels"].items() <= server["metadata"]["labels"].items()
    # Servers may be about to move, so where they shall run is a wish and no condition.
    assert "nodeSelector" not in pod
    (wish,) = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    wanted = {each["key"]: each["values"] for each in wish["preference"]["matchExpressions"]}
    assert wanted == {key: [value] for key, value in server["spec"]["nodeSelector"].items()}


def test_the_default_model_answers_as_it_does_without_kubernetes() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["models"]
    ((name, model),) = values.items()
    spec = read_model(CHART.parents[1] / "model_repository" / name)
    parameters = {key: str(value) for key, value in model["parameters"].items()}
    assert {**parameters, "gated": str(model["gated"]).lower()} == spec.parameters
    assert model["repository"] == spec.repository


def test_the_hook_can_be_switched_off() -> None:
    manifest = render({"modelSync": {"beforeUpgrade": False}}, upgrade=True)
    assert manifest.one("Job") == render().one("Job")


def test_the_hook_mounts_nothing_that_the_upgrade_has_yet_to_make() -> None:
    """Its token comes from a Secret of its own, its models from its own annotation."""
    manifest = render({"huggingface": {"token": {"value": "hf_x"}}}, upgrade=True)
    secret = next(v for v in job_pod(manifest)["volumes"] if v["name"] == "token")["secret"]
    made = manifest.one("Secret", secret["secretName"])
    assert made["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade,pre-rollback"
    assert int(made["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0
    kinds = {kind for v in job_pod(manifest)["volumes"] for kind in v if kind != "name"}
    assert kinds == {"persistentVolumeClaim", "downwardAPI", "emptyDir", "secret"}


def test_only_the_job_writes_to_the_store() -> None:
    for owner, template in render(file=CHART / "ci" / "everything-values.yaml").pods():
        for container in [
            *template["spec"].get("initContainers", []),
            *template["spec"]["containers"],
        ]:
            for mount in container.get("volumeMounts", []):
                if mount["mountPath"] == "/models":
                    assert mount.get("readOnly", False) is (owner["kind"] != "Job")


@pytest.mark.parametrize(
    "token", [{"value": "hf_x"}, {"existingSecret": "mine"}], ids=["value", "existing"]
)
def test_the_token_reaches_the_job_only_and_as_a_file(token: Object) -> None:
    manifest = render({"huggingface": {"token": token}})
    name = token.get("existingSecret", "rel-triton-huggingface")
    users = {
        owner["kind"]
        for owner, template in manifest.pods()
        for _, mapping in mappings(template)
        if mapping.get("secretName") == name or mapping.get("name") == name
    }
    assert users == {"Job"}
    (container,) = job_pod(manifest)["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    mount = next(m for m in container["volumeMounts"] if m["name"] == "token")
    assert env["HF_TOKEN_PATH"] == f"{mount['mountPath']}/token"
    assert "HF_TOKEN" not in env


def test_without_a_token_nothing_of_one_is_rendered() -> None:
    manifest = render()
    assert "HF_TOKEN" not in manifest.text
    assert [s["metadata"]["name"] for s in manifest.all("Secret")] == ["rel-triton-admin"]


def test_the_endpoint_reaches_the_job_only() -> None:
    manifest = render({"huggingface": {"endpoint": "http://hub.local:8080"}})
    env = {e["name"]: e.get("value") for e in job_pod(manifest)["containers"][0]["env"]}
    assert env["HF_ENDPOINT"] == "http://hub.local:8080"
    assert "HF_ENDPOINT" not in {entry["name"] for entry in manifest.server["env"]}
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in manifest.server["env"]


def test_a_failure_that_no_retry_cures_fails_the_job_at_once() -> None:
    (rule,) = render().one("Job")["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 3, 4]


def test_on_a_store_of_one_node_the_job_goes_where_the_servers_are() -> None:
    spec_of_job = job_pod(render())
    (term,) = spec_of_job["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    (expression,) = term["labelSelector"]["matchExpressions"]
    assert expression["values"] == ["server"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec_of_job[
        "tolerations"
    ]


@pytest.mark.parametrize("values", [{"modelStore": WIDE}, {"replicas": 0}], ids=["wide", "none"])
def test_elsewhere_the_job_runs_on_any_node(values: Object) -> None:
    spec_of_job = job_pod(render(values))
    assert "affinity" not in spec_of_job
    assert "tolerations" not in spec_of_job


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_kept_on_uninstall_is_a_value(keep: bool) -> None:
    values = {
        "modelStore": {"keep": keep},
        "huggingface": {"token": {"value": "x", "keep": keep}},
    }
    manifest = render(values)
    for found in (
        manifest.one("PersistentVolumeClaim"),
        manifest.one("Secret", "rel-triton-huggingface"),
    ):
        policy = found["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
        assert (policy == "keep") is keep


def test_an_existing_claim_is_used_and_not_made() -> None:
    manifest = render({"modelStore": {"existingClaim": "mine"}})
    assert manifest.all("PersistentVolumeClaim") == []
    for _, mapping in mappings(list(manifest.objects)):
        if "claimName" in mapping:
            assert mapping["claimName"] == "mine"


def test_the_claim_is_as_the_values_say() -> None:
    store = {"size": "7Gi", "storageClass": "fast", "accessModes": ["ReadWriteMany"]}
    claim = render({"modelStore": store}).one("PersistentVolumeClaim")["spec"]
    assert claim == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "7Gi"}},
    }


def test_without_the_job_servers_still_wait_for_their_generation() -> None:
    manifest = render({"modelSync": {"enabled": False}, "models": ONE})
    assert manifest.all("Job") == []
    (waiter,) = manifest.one("Deployment")["spec"]["template"]["spec"]["initContainers"]
    assert waiter["args"][0] == "wait"


def test_model_sync_can_trust_a_ca_and_stay_out_of_a_mesh() -> None:
    manifest = render(file=CHART / "ci" / "everything-values.yaml")
    template = manifest.one("Job")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert {"name": "ca", "mountPath": "/etc/ca", "readOnly": True} in container["volumeMounts"]
    assert {"name": "ca", "configMap": {"name": "corporate-ca"}} in template["spec"]["volumes"]
    assert container["image"] == "registry.example.com/ml/triton-hf-light:0.1.0"
    assert container["image"] != manifest.server["image"]
    assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    assert template["metadata"]["annotations"]["example.com/note"] == "sync"
    assert "triton-hf/models" in template["metadata"]["annotations"]
    assert template["spec"]["priorityClassName"] == "low"
    # The store is for one node, so the Job still follows the servers.
    assert set(template["spec"]["affinity"]) == {"podAffinity", "podAntiAffinity"}


def test_another_image_of_model_sync_writes_another_generation() -> None:
    """The image writes model.py and config.pbtxt, so servers wait for what this one writes."""
    other = render({"modelSync": {"image": "triton-hf-light:0.1.0"}})
    assert len(generations(other)) == 1
    assert generations(other) != generations(render())


def test_the_affinity_of_model_sync_stands_alone_on_a_shared_store() -> None:
    affinity: dict[str, Any] = {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}
    }
    pod = job_pod(render({"modelStore": WIDE, "modelSync": {"affinity": affinity}}))
    assert pod["affinity"] == affinity
    assert "affinity" not in job_pod(render({"modelStore": WIDE}))
