"""A load test inside the cluster: its verdict, its report, and what happens when parts die."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from load.tests.conftest import Start, condition, ended, report_of, settings
from tools import helm, install, load_test, place
from tools.helm import Release
from tools.place import ROOT
from tools.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]
FILES = {"run.json", "report.html", "summary.txt", "locust_stats.csv", "locust_stats_history.csv"}
TENSOR = {"name": "no_such_input", "datatype": "BYTES", "shape": [1, 1], "data": [["x"]]}
LONG = {"durationSeconds": 240}
OF_LOCUST = "app.kubernetes.io/name=locust"


def kubectl(release: Release, *words: str) -> str:
    return helm.run(release.place, "kubectl", "-n", release.namespace, *words)


def running(release: Release, component: str) -> list[str]:
    """Return the names of a run's pods of one component that run."""
    pods = load_test.pods(release, component)
    return [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]


def loading(release: Release) -> None:
    """Wait until the master has started the load on all workers."""

    def told() -> bool:
        (master,) = running(release, "master")
        said = kubectl(release, "logs", master)
        return "All users spawned" in said or "Spawning is complete" in said  # in time or late

    until(told, seconds=60)


# Verdicts.


@pytest.mark.parametrize("client", ["infer", "stream", "grpc"])
def test_a_good_server_passes_and_its_report_is_whole(
    start: Start, tmp_path: Path, client: str
) -> None:
    time_of = "ttft" if client == "stream" else "latency"
    goals = {f"p95 {time_of}": "5 s", "error ratio": 0, "min requests": 10}
    release = start(objectives=goals, run={"client": client})
    end = ended(release)
    assert (end.exit_code, end.reason) == (0, "")
    until(lambda: condition(release) == "Complete", seconds=10)
    record = report_of(release, end.folder, tmp_path)
    assert {file.name for file in (tmp_path / end.folder).iterdir()} >= FILES
    schema = ROOT / "load_testing" / "triton_load" / "run.schema.json"
    jsonschema.validate(record, json.loads(schema.read_text()))
    assert record["verdict"]["result"] == "pass"
    assert [objective["met"] for objective in record["objectives"]] == [True] * 3
    assert record["totals"]["requests"] >= 10
    assert (record["workers"]["expected"], record["workers"]["seen"]) == (2, 2)
    assert record["config"]["client"] == client


def test_workers_of_a_good_run_end_well_and_away_from_gpu_nodes(start: Start) -> None:
    release = start()
    assert ended(release).exit_code == 0
    until(lambda: condition(release, "worker") == "Complete", seconds=30)
    pods = [*load_test.pods(release, "master"), *load_test.pods(release, "worker")]
    assert len(pods) == 3
    for pod in pods:
        node = helm.get(release.place, release.namespace, "node", pod["spec"]["nodeName"])
        assert node["metadata"]["labels"].get("nvidia.com/gpu.present") != "true"


@pytest.mark.slow
def test_arrivals_keep_their_rate_over_all_workers(start: Start, tmp_path: Path) -> None:
    release = start(run={"rate": 10, "arrival": "constant"})
    end = ended(release)
    assert end.exit_code == 0
    record = report_of(release, end.folder, tmp_path)
    assert record["workers"]["seen"] == 2
    middle = record["series"][2:7]  # workers begin one after the other
    assert sum(second["started"] for second in middle) == pytest.approx(50, abs=3)
    assert [second["offered"] for second in middle] == [10] * 5
    assert record["distributions"]["schedule_lag_seconds"]["count"] == record["totals"]["requests"]


@pytest.mark.slow
def test_a_generator_that_is_late_makes_a_run_invalid(start: Start, tmp_path: Path) -> None:
    release = start(run={"options": {"max-tokens": 5, "max-lag": 0.01}})  # ms: nobody is so quick
    end = ended(release)
    assert end.exit_code == 3
    until(lambda: condition(release) == "Failed", seconds=10)
    (reason,) = report_of(release, end.folder, tmp_path)["verdict"]["reasons"]
    assert reason.startswith("the generator was late: p95 of its lag ")


def test_servers_are_counted_during_the_run(start: Start, tmp_path: Path) -> None:
    release = start()
    record = report_of(release, ended(release).folder, tmp_path)
    counts = [second["replicas"] for second in record["series"]]
    assert len(counts) >= 7
    assert counts.count(1) >= len(counts) - 3


@pytest.mark.slow
def test_a_server_that_joins_during_the_run_is_counted(
    start: Start, served: Release, tmp_path: Path
) -> None:
    scale = ("scale", "deployment", "-l", served.selector())
    release = start(run=LONG)
    loading(release)
    try:
        kubectl(served, *scale, "--replicas=2")
        kubectl(served, "rollout", "status", "deployment", "-l", served.selector())
        time.sleep(8)  # answers of the cluster's DNS may be 5 s old
    finally:
        kubectl(served, *scale, "--replicas=1")
    (master,) = running(release, "master")
    kubectl(release, "delete", "pod", master, "--wait=false")
    until(lambda: condition(release) == "Failed", seconds=60)
    record = report_of(release, master, tmp_path)
    counts = [second["replicas"] for second in record["series"] if second["replicas"]]
    assert counts[0] == 1
    assert 2 in counts
    assert record["verdict"]["reasons"] == ["the run was interrupted before its end"]


def test_a_missed_objective_fails_the_job_and_leaves_a_report(start: Start, tmp_path: Path) -> None:
    release = start(objectives={"p95 latency": "1 ms", "error ratio": 0.5})
    end = ended(release)
    assert end.exit_code == 1
    until(lambda: condition(release) == "Failed", seconds=10)
    record = report_of(release, end.folder, tmp_path)
    assert record["verdict"]["result"] == "fail"
    assert {o["name"]: o["met"] for o in record["objectives"]} == {
        "p95 latency": False,
        "error ratio": True,
    }


def test_fewer_requests_than_demanded_make_a_run_invalid(start: Start, tmp_path: Path) -> None:
    release = start(objectives={"min requests": 1_000_000})
    end = ended(release)
    assert end.exit_code == 3
    until(lambda: condition(release) == "Failed", seconds=10)
    assert report_of(release, end.folder, tmp_path)["verdict"]["result"] == "invalid"


def test_workers_that_never_come_make_a_run_invalid(start: Start, tmp_path: Path) -> None:
    never = {"resources": {"requests": {"cpu": "4000", "memory": "64Mi"}}}
    release = start(workers={"count": 1, **never}, master={"waitForWorkersSeconds": 5})
    end = ended(release)
    assert end.exit_code == 3
    record = report_of(release, end.folder, tmp_path)
    assert record["totals"]["requests"] == 0
    assert record["workers"]["seen"] == 0


def asked(served: Release) -> float:
    """Return how many requests the server has had, good and bad, by its own count."""
    code = "from urllib.request import urlopen as u; "
    code += "print(u('http://127.0.0.1:8002/metrics').read().decode())"
    (pod,) = served.pods()
    name = pod["metadata"]["name"]
    page = kubectl(served, "exec", name, "--", "python3", "-c", code)
    found = re.findall(r"^nv_inference_request_(?:success|failure)\{.*\} (\S+)$", page, re.M)
    assert found
    return sum(map(float, found))


# Each is refused on a laptop in the same words by load_testing/tests; here two on every change.
NOBODY = {"model": "simulated", "url": "http://no-such-host:8000"}
TLS = {"model": "simulated", "url": "https://triton:8000"}
BROKEN = 'input [ { name: "a" data_type: TYPE_WORD } ]'
WRONG_PORT: dict[str, Any] = {
    "target": {"model": "simulated", "grpc": "triton:8000"},
    "run": {"client": "grpc"},
}
case, SLOW = pytest.param, pytest.mark.slow


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        case({"target": {"model": "no-such-model"}}, "no-such-model", id="model", marks=SLOW),
        case({"target": NOBODY}, "no-such-host", id="host"),
        case({"data": {"inline": json.dumps({"inputs": [TENSOR]})}}, "no_such_input", id="data"),
        case({"target": TLS}, "TLS with https://", id="tls", marks=SLOW),
        case({"schema": {"inline": BROKEN}}, "TYPE_WORD", id="pbtxt", marks=SLOW),
        case({"objectives": {"p95 beauty": "1 s"}}, "p95 beauty", id="objective", marks=SLOW),
        case(WRONG_PORT, "triton:8000 does not answer gRPC calls", id="grpc", marks=SLOW),
    ],
)
def test_bad_input_is_one_sentence_and_no_load(
    start: Start, served: Release, changes: dict[str, Any], words: str
) -> None:
    before = asked(served)
    release = start(**changes)
    end = ended(release)
    assert end.exit_code == 2
    assert asked(served) == before
    log = kubectl(release, "logs", end.folder)
    (sentence,) = [line for line in log.splitlines() if line.startswith("error: ")]
    assert words in sentence
    assert "Traceback" not in log


# A search for the capacity.

SEARCH = {"enabled": True, "by": "users", "start": 2, "stepSeconds": 4, "warmUpSeconds": 0}
NO_PAUSE = {"options": {"max-tokens": 5, "max-lag": 60_000}}


def test_a_search_finds_what_a_server_holds_and_keeps_every_step(
    start: Start, tmp_path: Path
) -> None:
    release = start(
        capacity={**SEARCH, "highest": 4, "forUsers": 64},
        objectives={"p95 latency": "5 s", "error ratio": 0},
        run=NO_PAUSE,
    )
    end = ended(release, seconds=200)
    assert end.exit_code == 0
    until(lambda: condition(release) == "Complete", seconds=10)
    assert load_test.newest_job(release, "worker") is None
    record = report_of(release, end.folder, tmp_path)
    notes = record["notes"]
    assert [(step["load"], step["result"]) for step in notes["steps"]] == [
        *((2, "holds"), (4, "holds")),
        (4, "holds"),  # once more: near the limit a load may hold by luck
    ]
    assert notes["capacity"].startswith("one replica holds at least 4 users")
    answer = notes["answer"]
    assert answer["in_flight"] == pytest.approx(4, abs=0.8)
    assert answer["replicas"] == math.ceil(64 / (0.8 * answer["in_flight"]))  # a fifth stays free
    assert answer["target"] == math.floor(0.8 * answer["in_flight"])
    assert {second["replicas"] for second in record["series"]} >= {1}
    page = (tmp_path / end.folder / "report.html").read_text()
    assert f"replicas for 64 users: {answer['replicas']}" in page


@pytest.mark.slow
def test_a_search_finds_the_limit_that_the_slots_of_a_server_set(
    start: Start, tmp_path: Path
) -> None:
    # Eight slots and some 0.82 s an answer: with n users above 8 an answer takes 0.82 s * n / 8,
    # so 12 users are the limit, and 8 hold though a busy machine takes half as long again.
    release = start(
        capacity={**SEARCH, "start": 4, "stepSeconds": 6, "forUsers": 100},
        objectives={"mean latency": "1250 ms", "error ratio": 0},
        run={"client": "infer", "options": {"max-tokens": 400, "max-lag": 60_000}},
    )
    end = ended(release, seconds=300)
    assert end.exit_code == 0
    notes = report_of(release, end.folder, tmp_path)["notes"]
    assert [(step["load"], step["result"]) for step in notes["steps"][:3]] == [
        *((4, "holds"), (8, "holds"), (16, "breaks")),
    ]
    answer = notes["answer"]
    assert 8 <= answer["load"] <= 12
    assert "it breaks: mean latency is" in notes["capacity"]
    assert answer["in_flight"] == pytest.approx(answer["load"], rel=0.1)
    assert answer["target"] == math.floor(0.8 * answer["in_flight"])
    assert answer["replicas"] == math.ceil(100 / (0.8 * answer["in_flight"]))


@pytest.mark.slow
def test_a_search_whose_first_load_is_too_much_fails(start: Start, tmp_path: Path) -> None:
    release = start(capacity=SEARCH, objectives={"p95 latency": "1 ms"}, run=NO_PAUSE)
    end = ended(release, seconds=200)
    assert end.exit_code == 1
    until(lambda: condition(release) == "Failed", seconds=10)
    assert "one replica does not hold 2 users" in kubectl(release, "logs", end.folder)
    steps = report_of(release, end.folder, tmp_path)["notes"]["steps"]
    assert [step["result"] for step in steps] == ["breaks"]


# Who can watch.


def test_numbers_and_page_of_a_run_reach_those_whom_the_policies_admit(
    start: Start, here: place.Place
) -> None:
    scraper = {"app": "scraper"}
    host = f"load-{uuid.uuid4().hex[:5]}.test"
    controller = {"className": "traefik"} if here.embedded else {}
    release = start(
        run=LONG,
        networkPolicy={"monitoring": [{"podSelector": {"matchLabels": scraper}}]},
        webUI={"enabled": True, "ingress": {"enabled": True, "host": host, **controller}},
    )
    loading(release)
    (master,) = load_test.pods(release, "master")
    image = load_test.image_of(release)
    url = f"http://{master['status']['podIP']}:9646/metrics"
    code = f"from urllib.request import urlopen as u; print(u({url!r}, timeout=5).read().decode())"
    with (
        load_test.bystander(release, image, labels=scraper) as friend,
        load_test.bystander(release, image) as stranger,
    ):
        words = ("--", "python3", "-c", code)
        numbers = until(lambda: kubectl(release, "exec", friend, *words), seconds=30)
        with pytest.raises(helm.CommandFailedError, match=r"timed out|refused"):
            kubectl(release, "exec", stranger, *words)
    (passed,) = re.findall(r'triton_load_requests_total{result="passed"} (\S+)', numbers)
    assert float(passed) > 0
    assert 'triton_load_time_to_first_token_seconds{quantile="0.95"}' in numbers

    (found,) = helm.get(release.place, release.namespace, "ingress", "-l", OF_LOCUST)["items"]
    page = install.entrance_of(release.place, found)

    def answers() -> None:
        status, body = page.request("GET", "/stats/requests", timeout=5)
        assert status == 200, body
        assert json.loads(body)["state"] == "running"

    until(answers, seconds=60)
    assert b"<title>Locust</title>" in page.request("GET", "/", timeout=5)[1]


# Parts that die.


@pytest.mark.parametrize(
    ("grace", "workers"),
    [
        pytest.param("0", 2, id="killed", marks=SLOW),
        pytest.param("5", 2, id="evicted", marks=SLOW),
        pytest.param("0", 1, id="the only one"),
    ],
)
def test_a_worker_lost_in_the_middle_makes_the_run_invalid(
    start: Start, tmp_path: Path, grace: str, workers: int
) -> None:
    release = start(run=LONG, workers={"count": workers})
    loading(release)
    victim = running(release, "worker")[0]
    force = ["--force"] if grace == "0" else []
    kubectl(release, "delete", "pod", victim, f"--grace-period={grace}", "--wait=false", *force)
    end = ended(release)
    assert end.exit_code == 3
    record = report_of(release, end.folder, tmp_path)
    assert record["verdict"]["result"] == "invalid"
    assert (record["workers"]["seen"], record["workers"]["lost"]) == (workers, 1)
    lost = f"1 of {workers} workers were lost during the run"
    # With the only worker its last counts are gone, too, so few requests may be another reason.
    assert record["verdict"]["reasons"][0] == lost


def test_a_dead_master_is_a_failed_job_and_no_worker_stays(start: Start) -> None:
    release = start(run=LONG)
    loading(release)
    (master,) = running(release, "master")
    kubectl(release, "delete", "pod", master, "--grace-period=0", "--force", "--wait=false")
    until(lambda: running(release, "worker") == [], seconds=15)
    end = ended(release, seconds=60)
    assert end.exit_code == 3
    assert "master" in end.reason
    assert condition(release) == "Failed"
    until(lambda: condition(release, "worker") != "", seconds=10)


def test_a_master_that_is_evicted_still_writes_its_report(start: Start, tmp_path: Path) -> None:
    release = start(run=LONG)
    loading(release)
    (master,) = running(release, "master")
    kubectl(release, "delete", "pod", master, "--wait=false")
    until(lambda: condition(release) == "Failed", seconds=60)
    record = report_of(release, master, tmp_path)
    assert record["verdict"]["result"] == "invalid"
    assert record["totals"]["requests"] > 0


# Reports outlive pods, and runs do not meet.


def test_the_report_outlives_the_pods_that_the_ttl_removes(start: Start, tmp_path: Path) -> None:
    release = start(jobs={"ttlSecondsAfterFinished": 1, "deadlineSeconds": 600})
    until(lambda: load_test.pods(release, "master") != [], seconds=60)
    until(lambda: load_test.newest_job(release, "master") is None, seconds=120)
    until(lambda: load_test.newest_job(release, "worker") is None, seconds=60)
    record = report_of(release, "", tmp_path)
    assert record["verdict"]["result"] == "pass"
    assert record["name"] == f"{release.name}-locust-run-1"


def test_two_tests_in_one_namespace_do_not_meet(start: Start, tmp_path: Path) -> None:
    one = start("one", workers={"count": 1}, run={"users": 1, "durationSeconds": 12})
    two = start("two", workers={"count": 2}, run={"users": 6, "durationSeconds": 12})
    for release, workers, users in ((one, 1, 1), (two, 2, 6)):
        end = ended(release)
        assert end.exit_code == 0
        record = report_of(release, end.folder, tmp_path)
        assert record["workers"]["seen"] == workers
        assert max(second["users"] for second in record["series"]) == users
        assert record["config"]["users"] == users


@pytest.mark.slow
def test_an_upgrade_is_a_new_run_and_keeps_the_old_report(start: Start, tmp_path: Path) -> None:
    release = start("again", workers={"count": 1})
    first = ended(release)
    start("again", workers={"count": 1})
    second = ended(release)
    assert (first.exit_code, second.exit_code) == (0, 0)
    names = [report_of(release, end.folder, tmp_path)["name"] for end in (first, second)]
    assert names == ["again-locust-run-1", "again-locust-run-2"]


# The command.


def test_the_command_tells_verdict_and_place_and_fetches_again(
    served: Release, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(settings(served.place, objectives={"p95 latency": "1 ms"})))
    words = ["--namespace", served.namespace, "--release", "asked", "--json"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools.load_test", *more, *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("--values", str(values), "--into", str(tmp_path / "run"))
    release = Release(
        place=served.place, namespace=served.namespace, name="asked", chart=load_test.CHART
    )
    try:
        assert done.returncode == 1, done.stdout + done.stderr
        told = json.loads(done.stdout)
        assert (told["verdict"], told["exit_code"], told["reason"]) == ("fail", 1, "")
        place_of = Path(told["report"])
        assert place_of.parent == tmp_path / "run"
        assert (place_of / "report.html").is_file()
        again = run("fetch", "--into", str(tmp_path / "again"))
        assert again.returncode == 0, again.stderr
        assert Path(again.stdout.strip()) == tmp_path / "again" / place_of.name
        assert (tmp_path / "again" / place_of.name / "run.json").is_file()
    finally:
        release.uninstall()
