"""A steady load leaves a server as it was; what grows, slows or leaks is told apart from noise."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import pytest

from benchmarks.soak import __main__ as command
from benchmarks.soak import judge
from benchmarks.soak.draw import draw
from benchmarks.soak.drive import STREAM, WHOLE, Asked, Ended
from benchmarks.soak.pace import Look, Pace
from benchmarks.soak.process_watch import Held, Sample
from benchmarks.soak.run import Soak, server, soak

SPAN = judge.Span(start=100.0, end=600.0)
MIB = 1 << 20


def answers(last: float = 1.0, *, per_second: int = 20, spread: float = 0.02) -> list[Ended]:
    """Return answers of about a second, those of the last window slower by a factor."""
    luck = random.Random(5)
    slow_from = SPAN.window(-1)[0]
    found = []
    for number in range(600 * per_second):
        at = number / per_second
        seconds = luck.gauss(1.0, spread) * (last if at >= slow_from else 1.0)
        for kind in (WHOLE, STREAM):
            found.append(Ended(model="m", kind=kind, at=at, seconds=seconds, fault=""))
    return found


def samples(*, leak: float = 0.0, shared_leak: int = 0) -> list[Sample]:
    """Return samples of a process of 100 MiB that grows by so many MiB in all."""
    luck = random.Random(5)
    found = []
    for at in range(0, 601, 2):
        rss = 100 * MIB + int(leak * MIB * at / 600) + luck.randrange(MIB // 8)
        held = Held(pid=1, rss=rss, descriptors=10, threads=5)
        shared = 2 * MIB + shared_leak * (at > 300)
        found.append(Sample(at=float(at), processes={"tritonserver": held}, shared=shared))
    return found


def verdicts(lines: list[judge.Line]) -> set[str]:
    return {line.verdict for line in lines}


def test_the_same_times_hold_and_slower_ones_are_over() -> None:
    assert verdicts(judge.times(answers(1.0), SPAN)) == {judge.HELD}
    assert verdicts(judge.times(answers(1.10), SPAN)) == {judge.OVER}


def test_a_drift_is_over_and_times_that_go_up_and_down_are_unclear() -> None:
    def slower(by_window: list[float]) -> list[Ended]:
        return [
            dataclasses.replace(one, seconds=one.seconds * factor)
            for one in answers(1.0)
            for window, factor in zip(SPAN.windows(), by_window, strict=True)
            if window[0] <= one.at < window[1]
        ]

    assert verdicts(judge.times(slower([1.0, 1.05, 1.10, 1.15, 1.22]), SPAN)) == {judge.OVER}
    assert verdicts(judge.times(slower([1.0, 1.2, 1.2, 1.2, 1.2]), SPAN)) == {judge.OVER}
    assert verdicts(judge.times(slower([1.0, 1.0, 1.0, 1.2, 1.2]), SPAN)) == {judge.OVER}
    assert verdicts(judge.times(slower([1.0, 1.2, 1.0, 1.15, 1.2]), SPAN)) == {judge.UNCLEAR}
    assert verdicts(judge.times(slower([1.0, 1.2, 1.05, 1.15, 1.0]), SPAN)) == {judge.HELD}


def test_a_change_that_noise_can_explain_is_unclear_and_no_pass() -> None:
    noisy = judge.times(answers(1.10, per_second=4, spread=0.4), SPAN)
    assert verdicts(noisy) == {judge.UNCLEAR}
    assert verdicts(judge.times(answers(1.0, per_second=1), SPAN)) == {judge.UNCLEAR}


def test_a_drift_of_one_kind_alone_is_over_and_noise_is_not() -> None:
    slower = [
        dataclasses.replace(one, seconds=one.seconds * 1.15)
        if one.kind == STREAM and one.at >= SPAN.window(-1)[0]
        else one
        for one in answers(1.0)
    ]
    assert [(line.name, line.verdict) for line in judge.kinds(slower, SPAN)] == [
        (f"{STREAM}: p99 m, s", judge.OVER),
        (f"{WHOLE}: p99 m, s", judge.HELD),
    ]
    assert verdicts(judge.kinds(answers(1.10, per_second=4, spread=0.4), SPAN)) == {judge.HELD}
    assert verdicts(judge.kinds(answers(1.0, per_second=1), SPAN)) == {judge.HELD}


def test_two_percent_of_memory_may_come_and_not_more() -> None:
    assert verdicts(judge.memory(samples(leak=1.5), SPAN)) == {judge.HELD}
    assert verdicts(judge.memory(samples(leak=4.0), SPAN)) == {judge.OVER}


def test_shared_memory_must_be_constant_from_the_first_window_on() -> None:
    assert judge.shared(samples(), SPAN).verdict == judge.HELD
    assert judge.shared(samples(shared_leak=4096), SPAN).verdict == judge.OVER


@pytest.mark.parametrize(
    "after",
    [
        Held(pid=2, rss=1, descriptors=10, threads=5),
        Held(pid=1, rss=1, descriptors=11, threads=5),
        Held(pid=1, rss=1, descriptors=10, threads=6),
        None,
    ],
    ids=["another process", "a descriptor", "a thread", "gone"],
)
def test_a_process_that_changed_or_holds_more_without_load_is_over(after: Held | None) -> None:
    before = Sample(at=0.0, processes=samples()[0].processes, shared=0)
    now = Sample(at=1.0, processes={"tritonserver": after} if after else {}, shared=0)
    assert verdicts(judge.idle(before, before)) == {judge.HELD}
    assert judge.OVER in verdicts(judge.idle(before, now))


def test_one_wrong_answer_is_over() -> None:
    wrong = Ended(model="m", kind=WHOLE, at=1.0, seconds=1.0, fault="status 500")
    assert verdicts(judge.faults(answers())) == {judge.HELD}
    assert judge.OVER in verdicts(judge.faults([*answers(), wrong]))


def test_on_cores_that_the_host_took_nothing_is_said_of_answers() -> None:
    wrong = [dataclasses.replace(one, fault="status 503") for one in answers(1.2)]
    calm, crowded = (dataclasses.replace(made(wrong), stolen=share) for share in (0.04, 0.3))
    assert command.verdict(calm.lines(timed=True)) == judge.OVER
    assert command.verdict(crowded.lines(timed=True)) == judge.UNCLEAR
    good = dataclasses.replace(made(answers()), stolen=0.3)
    assert command.verdict(good.lines(timed=True)) == judge.HELD
    leaking = dataclasses.replace(crowded, samples=samples(leak=40))
    assert command.verdict(leaking.lines(timed=True)) == judge.OVER


def test_a_load_that_was_not_the_wanted_share_of_the_capacity_is_unclear() -> None:
    slow = dataclasses.replace(made(answers()), capacity={"m": 38.0})
    assert command.verdict(slow.lines(timed=True)) == judge.UNCLEAR
    # A capacity of 25/s that was found at half the pace of the load is one of 50/s.
    found = dataclasses.replace(slow, capacity={"smollm2": 25.0}, looks=paced(1.0))
    ended = [dataclasses.replace(one, model="smollm2") for one in answers()]
    found = dataclasses.replace(found, ended=ended, found_at=0.02)
    assert found.share("smollm2") == pytest.approx(0.8, rel=0.02)
    assert command.verdict(made(answers()).lines(timed=True)) == judge.HELD


def test_windows_are_of_one_length_and_fill_the_settled_time() -> None:
    windows = SPAN.windows()
    assert (windows[0][0], windows[-1][1]) == (SPAN.start, pytest.approx(SPAN.end))
    assert [window[0] for window in windows[1:]] == pytest.approx([w[1] for w in windows[:-1]])
    assert SPAN.window(-1) == windows[-1]


def paced(last: float) -> list[Look]:
    """Return looks at a machine that takes longer by a factor in the last window."""
    luck = random.Random(6)
    slow_from = SPAN.window(-1)[0]
    return [
        Look(at=float(at), seconds=luck.gauss(0.01, 0.0005) * (last if at >= slow_from else 1.0))
        for at in range(0, 601, 2)
    ]


def test_what_computes_is_judged_at_one_pace_of_the_machine_and_what_waits_is_not() -> None:
    def of(model: str, slower: float, machine: float) -> set[str]:
        ended = [dataclasses.replace(one, model=model) for one in answers(slower)]
        found = dataclasses.replace(made(ended), looks=paced(machine), capacity={model: 50.0})
        return verdicts(found.lines(timed=True))

    assert of("smollm2", 1.2, machine=1.2) == {judge.HELD}
    assert judge.OVER in of("smollm2", 1.2, machine=1.0)
    assert judge.OVER in of("smollm2", 1.0, machine=0.8)
    assert judge.OVER in of("simulated", 1.2, machine=1.2)


def test_a_look_at_the_pace_is_of_the_computation_and_not_of_waiting() -> None:
    timer = Pace()
    for _ in range(5):
        timer.look()
        time.sleep(0.05)
    assert all(0 < look.seconds < 0.5 for look in timer.looks)
    assert [look.at for look in timer.looks] == sorted(look.at for look in timer.looks)


def test_users_who_think_ask_at_the_rate_that_is_wanted() -> None:
    asked = Asked(model="m", tokens=8, clients=6, slots=4, computes=True)
    # 10 answers a second at most with 4 slots: one takes 0.4 s, so 6 users make 8/s with 0.35 s.
    assert asked.pause(rate=8.0, capacity=10.0) == pytest.approx(0.35)
    assert asked.pause(rate=30.0, capacity=10.0) == 0.0


def made(ended: list[Ended]) -> Soak:
    found = samples()
    return Soak(
        capacity={"m": 50.0, "silent": 0.0},
        ended=ended,
        samples=found,
        idle=(found[0], found[-1]),
        span=SPAN,
    )


def test_the_row_of_the_table_names_what_is_not_held() -> None:
    good, slow = made(answers()), made(answers(1.1))
    row = command.row(good, good.lines(timed=True), minutes=10)
    assert row.passed
    assert "0 of 24000 wrong" in row.measured
    row = command.row(slow, slow.lines(timed=True), minutes=10)
    assert not row.passed
    assert "p99 m, s: over" in row.measured


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    draw(made(answers()), tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.triton
@pytest.mark.slow
def test_two_minutes_under_load_leave_memory_descriptors_and_shared_memory_as_they_were(
    tmp_path: Path,
) -> None:
    names = ["simulated"]
    with server(names, tmp_path) as running:
        found = soak(running, names, minutes=2, seed=1, say=print)
        assert running.process.poll() is None
    assert len(found.ended) > 500
    lines = found.lines(timed=False)
    assert [line for line in lines if line.verdict != judge.HELD] == []
