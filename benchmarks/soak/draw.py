"""The picture of a soak: times, the machine's pace, memory and /dev/shm over the minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.soak import judge
from benchmarks.soak.drive import STREAM, WHOLE
from benchmarks.soak.run import Soak

PIECES = 30  # points of a line of times


def draw(found: Soak, file: Path) -> None:
    """Write the picture as PNG."""
    figure, (times, pace, memory, shared) = pyplot.subplots(
        4, 1, figsize=(10, 13), sharex=True, height_ratios=(3, 1, 2, 2)
    )
    start = found.samples[0].at
    minutes = [(sample.at - start) / 60 for sample in found.samples]
    _times(found, times, start)
    looks = [((look.at - start) / 60, 1000 * look.seconds) for look in found.looks]
    pace.plot([at for at, _ in looks], [ms for _, ms in looks], color="grey", linewidth=0.5)
    pace.set_ylim(bottom=0)
    pace.set_ylabel("ms")
    pace.set_title("A fixed computation beside the server: the pace of the machine", fontsize=10)
    for name in found.samples[0].processes:
        values = [s.processes[name].rss if name in s.processes else 0 for s in found.samples]
        change = [value / values[0] * 100 - 100 for value in values]
        label = f"{name}, {values[0] / 2**20:.0f} MiB at first"
        memory.plot(minutes, change, label=label, linewidth=1)
    memory.set_ylabel("RSS, change in %")
    memory.set_title("Memory of each process, change since the load began", fontsize=10)
    shared.plot(minutes, [sample.shared / 2**20 for sample in found.samples], color="black")
    shared.set_ylim(bottom=0)
    shared.set_ylabel("MiB")
    shared.set_title("/dev/shm of the server's processes", fontsize=10)
    shared.set_xlabel("minutes")
    for axes in (times, pace, memory, shared):
        axes.grid(alpha=0.3)
        for window in (found.span.window(0), found.span.window(-1)):
            left, right = ((at - start) / 60 for at in window)
            axes.axvspan(left, right, color="tab:blue", alpha=0.08)
    times.legend(fontsize=8, ncols=2)
    memory.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _times(found: Soak, axes: Any, start: float) -> None:
    length = (found.samples[-1].at - start) / PIECES
    for index, model in enumerate(sorted(found.capacity)):
        for kind, style in ((WHOLE, "-"), (STREAM, "--")):
            chosen = [one for one in found.ended if (one.model, one.kind) == (model, kind)]
            x, y = [], []
            for piece in range(PIECES):
                left = start + piece * length
                if values := judge.within(chosen, (left, left + length)):
                    x.append((left + length / 2 - start) / 60)
                    y.append(judge.p99(values))
            axes.plot(x, y, style, color=f"C{index}", label=f"{model}, {kind}", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    title = "99th percentile of the time to the last byte (shaded: the windows that are compared)"
    axes.set_title(title, fontsize=10)
