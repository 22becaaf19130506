"""Steps run in their order, are never mute for long, and end together when one fails."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tools import steps
from tools.steps import Board, Step, StepFailedError, run_all
from tools.wait import until

PATIENCE = 0.2


def shell(name: str, text: str, *, after: tuple[str, ...] = ()) -> Step:
    return Step(name=name, command=["sh", "-ec", text], after=after)


def wait_for(file: Path) -> str:
    return f"until [ -s {file} ]; do sleep 0.02; done"


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_step_starts_when_those_that_it_waits_for_have_ended(tmp_path: Path) -> None:
    order: list[str] = []

    def noted(name: str, *after: str) -> Step:
        return Step(name=name, command=lambda: order.append(name), after=after)

    run_all(
        [
            noted("release", "image", "cluster"),
            noted("image", "packages"),
            noted("cluster", "packages"),
            noted("packages"),
        ],
        Board(),
        logs=tmp_path,
    )

    assert order[0] == "packages"
    assert order[-1] == "release"
    assert len(order) == 4


def test_steps_that_wait_for_nothing_run_side_by_side(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"

    run_all(
        [
            shell("one", f"echo x >{one}; {wait_for(two)}"),
            shell("two", f"{wait_for(one)}; echo x >{two}"),
        ],
        Board(),
        logs=tmp_path / "logs",
    )

    assert two.exists()


def test_a_mute_step_is_spoken_for_again_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(silence=PATIENCE)
    heard = ""

    def spoken_for_twice() -> bool:
        nonlocal heard
        heard += capsys.readouterr().err
        return heard.count("quiet        ... still at it") >= 2

    def mute() -> None:
        until(spoken_for_twice, seconds=30, every=0.02)

    run_all([Step(name="quiet", command=mute)], board, logs=tmp_path)

    assert board.silences["quiet"] >= PATIENCE


def test_the_longest_silence_stays_below_ten_seconds() -> None:
    # It is looked for eight times in each span of silence.
    assert Board().silence * (1 + 1 / 8) < 10


def test_each_line_of_a_step_is_shown_behind_its_name_and_kept_in_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all([shell("image", "echo pulling; echo done >&2")], Board(), logs=tmp_path)

    said = capsys.readouterr().err
    assert "image        pulling\n" in said
    assert "image        done\n" in said
    assert (tmp_path / "image.log").read_text() == "pulling\ndone\n"


def test_a_failing_step_names_its_log_and_ends_the_others_with_all_that_they_started(
    tmp_path: Path,
) -> None:
    grandchild = tmp_path / "pid"
    marker = tmp_path / "started"
    steps = [
        shell("image", f"sh -c 'sleep 300' & echo $! >{grandchild}; wait"),
        shell("model", f"{wait_for(grandchild)}; echo no network; exit 3"),
        shell("release", f"touch {marker}", after=("model",)),
    ]

    with pytest.raises(StepFailedError) as error:
        run_all(steps, Board(), logs=tmp_path / "logs")

    log = tmp_path / "logs" / "model.log"
    assert str(error.value) == f"step model failed (exit code 3); its whole log: {log}"
    assert log.read_text() == "no network\n"
    assert not alive(int(grandchild.read_text()))
    assert not marker.exists()


def test_what_does_not_end_on_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "GRACE", 0.3)
    pid = tmp_path / "pid"
    deaf = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )

    with pytest.raises(StepFailedError, match="step bad failed"):
        run_all(
            [
                Step(name="deaf", command=[sys.executable, "-c", deaf, str(pid)]),
                shell("bad", f"{wait_for(pid)}; exit 1"),
            ],
            Board(),
            logs=tmp_path / "logs",
        )

    assert not alive(int(pid.read_text()))


def test_environment_of_a_step_is_its_own(tmp_path: Path) -> None:
    step = Step(name="one", command=["sh", "-c", "echo $WORD"], environment={"WORD": "hello"})
    run_all([step], Board(), logs=tmp_path)
    assert (tmp_path / "one.log").read_text() == "hello\n"
    assert "WORD" not in os.environ


def test_the_table_and_the_record_name_each_step_with_seconds_and_longest_silence(
    tmp_path: Path,
) -> None:
    board = Board()
    run_all([shell("packages", "echo one; sleep 0.3; echo two")], board, logs=tmp_path)

    board.record(tmp_path / "up.json")

    record = json.loads((tmp_path / "up.json").read_text())
    step = record["steps"]["packages"]
    assert step["seconds"] >= step["longest_silence"] >= 0.3
    assert record["longest_silence"] == step["longest_silence"]
    assert record["seconds"] >= step["seconds"]
    head, row, total = board.table().splitlines()
    assert head.split() == ["step", "took", "longest", "silence"]
    assert row.split()[0] == "packages"
    assert f"{step['longest_silence']} s" in row
    assert f"{step['longest_silence']} s" in total
