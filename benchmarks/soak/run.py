"""One soak: start the server, find what it can do, load it, watch it, judge it."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.soak import judge, pace, process_watch
from benchmarks.soak.drive import ANSWERED, Asked, Drive, Ended
from benchmarks.soak.pace import Look, Pace
from embedded_triton.server import Server, running_server
from tools.demo_model import REPOSITORY
from tools.hub_mirror.repositories import populate
from tools.hub_mirror.server import running_hub
from tools.wait import until
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec

LOAD = 0.8  # of what the server can do
EVERY = 2.0  # seconds between two samples
SLOTS = 4  # of each model
MODELS = {
    "simulated": Asked(model="simulated", tokens=24, clients=6, slots=SLOTS),
    # Short answers, because a 99th percentile needs many.
    "smollm2": Asked(model="smollm2", tokens=8, clients=6, slots=SLOTS, computes=True),
}
SPECS = {
    "simulated": ModelSpec(
        name="simulated",
        engine="simulated",
        parameters={"ttft_ms": "50", "inter_token_ms": "10", "slots": str(SLOTS)},
    ),
    "smollm2": ModelSpec(
        name="smollm2",
        repository=REPOSITORY,
        parameters={"dtype": "bfloat16", "device": "cpu", "slots": str(SLOTS)},
    ),
}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Soak:
    """What a run saw.

    Attributes:
        capacity: answers a second of each model, all models loaded together.
        ended: requests of the load, those of the search for the capacity not among them.
        samples: of the loaded time.
        idle: samples without any request, before and after.
        span: the settled time, in which windows are compared.
        stolen: share of the cores' time under load that a hypervisor took.
        looks: at the machine's pace, while it was loaded.
        found_at: seconds that the fixed computation took while the capacity was found.
    """

    capacity: dict[str, float]
    ended: Sequence[Ended]
    samples: Sequence[process_watch.Sample]
    idle: tuple[process_watch.Sample, process_watch.Sample]
    span: judge.Span
    stolen: float = 0.0
    looks: Sequence[Look] = ()
    found_at: float = 0.0

    def lines(self, *, timed: bool) -> list[judge.Line]:
        """Return every comparison; without `timed` none of times."""
        answers = judge.faults(self.ended)
        if timed:
            ended = self.at_one_pace()
            answers += [*judge.times(ended, self.span), *judge.kinds(ended, self.span)]
        loads = [
            judge.load(name, self.share(name), LOAD)
            for name, most in self.capacity.items()
            if timed and most
        ]
        return [
            *judge.stolen(self.stolen, answers),
            *loads,
            *(judge.paces(self.looks, self.span) if self.looks else []),
            *judge.memory(self.samples, self.span),
            judge.shared(self.samples, self.span),
            *judge.idle(*self.idle),
        ]

    def rate(self, model: str) -> float:
        """Return the answers a second that a model gave in the settled time."""
        answered = [one for one in self.ended if one.model == model and one.kind in ANSWERED]
        found = judge.within(answered, (self.span.start, self.span.end))
        return len(found) / (self.span.end - self.span.start)

    def share(self, model: str) -> float:
        """Return that as a part of the capacity, of one that computes at the pace of that time."""
        most = self.capacity[model]
        if self.looks and self.found_at and model in MODELS and MODELS[model].computes:
            most *= self.found_at / pace.within(self.looks, (self.span.start, self.span.end))
        return self.rate(model) / most

    def at_one_pace(self) -> list[Ended]:
        """Return the requests, those of a model that computes as long as at the first pace."""
        if not self.looks:
            return list(self.ended)
        first = pace.within(self.looks, self.span.window(0))

        def scaled(one: Ended) -> Ended:
            if one.model not in MODELS or not MODELS[one.model].computes:
                return one
            now = pace.around(self.looks, one.at + one.seconds / 2)
            return replace(one, seconds=one.seconds * first / now)

        return [scaled(one) for one in self.ended]


@contextlib.contextmanager
def server(names: Sequence[str], folder: Path) -> Iterator[Server]:
    """Run a tritonserver with some of the models."""
    with ExitStack() as stack:
        environment = {}
        if "smollm2" in names:
            populate(folder / "hub")
            hub = stack.enter_context(running_hub(folder / "hub"))
            environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
            environment["HF_HUB_OFFLINE"] = "0"
        for name in names:
            write_model(folder / "models", SPECS[name])
        yield stack.enter_context(
            running_server(
                arguments=[f"--model-repository={folder / 'models'}"],
                workdir=folder,
                environment=environment,
                wait_seconds=400,
            )
        )


def soak(running: Server, names: Sequence[str], *, minutes: float, seed: int, say: Say) -> Soak:
    """Load a server for so many minutes at 80 % of what it can do.

    The first tenth of the time is not compared.
    """
    asked = [MODELS[name] for name in names]
    drive = Drive(running.ports.http, seed=seed)
    seconds = minutes * 60
    search = min(60.0, max(10.0, seconds / 10))
    say(f"finding the capacity ({search:.0f} s)")
    timer = Pace()
    capacity = asyncio.run(_search(drive, asked, search, timer))
    found_at = statistics.median(look.seconds for look in timer.looks)
    for name, rate in capacity.items():
        say(f"{name} ends {rate:.1f} requests/s at most; it gets {rate * LOAD:.1f}")
    drive.ended.clear()
    before = settled(running)
    spent = process_watch.cpu_seconds()
    start = time.monotonic()
    span = judge.Span(start=start + seconds / 10, end=start + seconds)
    spans = [(start, span.start), *span.windows()]
    timer.looks.clear()
    load = Load(
        drive=drive, asked=asked, capacity=capacity, spans=spans, timer=timer, found_at=found_at
    )
    samples = asyncio.run(_load(running, load, say))
    all_of_it, taken = (b - a for a, b in zip(spent, process_watch.cpu_seconds(), strict=True))
    after = settled(running)
    return Soak(
        capacity=capacity,
        ended=tuple(drive.ended),
        samples=tuple(samples),
        idle=(before, after),
        span=span,
        stolen=taken / all_of_it if all_of_it else 0.0,
        looks=tuple(timer.looks),
        found_at=found_at,
    )


def settled(running: Server) -> process_watch.Sample:
    """Wait until nothing runs, waits or is connected; return what the server then holds.

    Raises:
        TimeoutError: a slot is still taken, or descriptors are still in use.
    """

    def empty() -> None:
        taken = {name: value for name, value in process_watch.in_flight(running).items() if value}
        assert not taken, f"in flight without a client: {taken}"

    def still() -> process_watch.Sample:
        first = process_watch.sample(running)
        time.sleep(2)
        last = process_watch.sample(running)
        for name, held in last.processes.items():
            assert first.processes[name].descriptors == held.descriptors, f"{name} still changes"
        return last

    until(empty, seconds=30, every=0.5)
    return until(still, seconds=60, every=0.5)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent, at 80 % of the capacity of each model.

    Attributes:
        capacity: answers a second, found when the fixed computation took `found_at` seconds.
        timer: what it takes now.
    """

    drive: Drive
    asked: Sequence[Asked]
    capacity: Mapping[str, float]
    spans: Sequence[tuple[float, float]]
    timer: Pace
    found_at: float

    @property
    def end(self) -> float:
        """When nothing more begins, in monotonic seconds."""
        return self.spans[-1][1]

    def begin(self) -> list[asyncio.Task[None]]:
        """Begin to send; the tasks end with the load."""
        return [asyncio.create_task(self._send(one)) for one in self.asked]

    async def _send(self, one: Asked) -> None:
        most = self.capacity[one.model]
        if one.computes:

            def pause() -> float:
                looks = self.timer.looks
                now = pace.around(looks, looks[-1].at) if looks else self.found_at
                can = most * self.found_at / now
                return one.pause(LOAD * can, can)

            await self.drive.think(one, pause, self.end)
        else:
            await self.drive.arrive(one, LOAD * most, self.spans)


async def _search(
    drive: Drive, asked: list[Asked], seconds: float, timer: Pace
) -> dict[str, float]:
    found = asyncio.create_task(drive.capacity(asked, seconds))
    while not found.done():
        await asyncio.to_thread(timer.look)
        await asyncio.wait([found], timeout=EVERY)
    return found.result()


async def _load(running: Server, load: Load, say: Say) -> list[process_watch.Sample]:
    samples: list[process_watch.Sample] = []
    sending = load.begin()
    told = 0.0
    while (now := time.monotonic()) < load.end:
        samples.append(await asyncio.to_thread(process_watch.sample, running))
        await asyncio.to_thread(load.timer.look)
        if now - told > 10:
            told = now
            held = samples[-1].processes
            memory = ", ".join(f"{name} {one.rss / 2**20:.0f}" for name, one in held.items())
            ended = load.drive.ended
            wrong = sum(bool(one.fault) for one in ended)
            say(f"{load.end - now:.0f} s left, {len(ended)} ended, {wrong} wrong; MiB: {memory}")
        await asyncio.sleep(min(EVERY, max(0.0, load.end - time.monotonic())))
    await asyncio.gather(*sending)
    await load.drive.finish()
    return samples
