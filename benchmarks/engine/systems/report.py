"""The tables and the plot of what was measured."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from benchmarks.engine.systems.limits import Limits
from benchmarks.engine.systems.measure import Run, Shape

OURS = "ours, infer"
NONE = "-"
Cells = dict[str, dict[int, list[Run]]]  # by shape and clients


@dataclasses.dataclass(kw_only=True)
class Row:
    """What is known of one system; seconds and bytes.

    Attributes:
        bandwidth: Bytes per second of sweeps over the memory between the runs with one client,
            because that changes on a machine that others use, too.
    """

    name: str
    precision: str
    settings: str
    fault: str = ""
    starts: list[float] = dataclasses.field(default_factory=list)
    memory_bytes: int | None = None
    idle_first_token: list[float] = dataclasses.field(default_factory=list)
    prefill_first_token: list[float] = dataclasses.field(default_factory=list)
    bandwidth: list[float] = dataclasses.field(default_factory=list)
    cells: Cells = dataclasses.field(default_factory=dict)


def ratio(ours: list[Run] | None, peer: list[Run] | None) -> float | None:
    """How many times faster ours is, by medians; None where one is missing."""
    if not ours or not peer:
        return None
    return _speed(ours) / _speed(peer)


def speed_table(rows: list[Row], shape: str, *, limits: Limits) -> str:
    """Tokens per second of one shape as a Markdown table.

    Args:
        rows: The systems; `OURS` is what the others are compared with.
        shape: Which shape.
        limits: What the machine allows in bf16.
    """
    clients = sorted({count for row in rows for count in row.cells.get(shape, {})})
    ours = next((row.cells.get(shape, {}) for row in rows if row.name == OURS), {})
    many = max(clients, default=1)
    head = ["system", "precision", *(f"c={count}" for count in clients)]
    head += ["c=1 of memory", f"c={many} of arithmetic"]
    lines = [line(head), line(["---"] * len(head))]
    for row in rows:
        cells = row.cells.get(shape, {})
        if cells:
            texts = [_cell(ours.get(c), cells.get(c), row.name) for c in clients]
            shares = [
                _share(row, cells.get(1), limits.near(row.bandwidth)),
                _share(row, cells.get(many), limits.arithmetic(Shape.parse(shape))),
            ]
            lines.append(line([row.name, row.precision, *texts, *shares]))
    return "\n".join(lines)


def _share(row: Row, runs: list[Run] | None, limit: float) -> str:
    return f"{_speed(runs) / limit:.0%}" if runs and row.precision == "bf16" and limit else NONE


def _cell(ours: list[Run] | None, runs: list[Run] | None, name: str) -> str:
    if not runs:
        return NONE
    speeds = [run.tokens_per_second for run in runs]
    text = f"{_speed(runs):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
    found = None if name == OURS else ratio(ours, runs)
    return text if found is None else f"{text} x{found:.2f}"


def other_table(rows: list[Row], shape: str) -> str:
    """Start, memory, first token and gaps between tokens as a Markdown table."""
    clients = sorted({count for row in rows for count in row.cells.get(shape, {})})
    head = ["system", "start s", "memory MB", "first token ms", "prefill tok/s"]
    head += [f"gap p50 / p99 ms, c={count}" for count in clients]
    lines = [line(head), line(["---"] * len(head))]
    for row in rows:
        if not row.starts:
            continue
        lines.append(line([row.name, *_other(row), *(_gaps(row, shape, c) for c in clients)]))
    return "\n".join(lines)


def _other(row: Row) -> list[str]:
    return [
        f"{statistics.median(row.starts):.1f}",
        f"{row.memory_bytes / 1e6:.0f}" if row.memory_bytes else NONE,
        f"{1000 * statistics.median(row.idle_first_token):.0f}" if row.idle_first_token else NONE,
        f"{prefill_speed(row):.0f}" if row.prefill_first_token else NONE,
    ]


def prefill_speed(row: Row, *, length: int = 1000) -> float:
    """Tokens of a long prompt per second until its first token."""
    return length / statistics.median(row.prefill_first_token)


def _gaps(row: Row, shape: str, clients: int) -> str:
    runs = row.cells.get(shape, {}).get(clients, [])
    found = [(run.inter_token_p50, run.inter_token_p99) for run in runs]
    pairs = [(p50, p99) for p50, p99 in found if p50 is not None and p99 is not None]
    if not pairs:
        return NONE
    middle, high = (statistics.median(pair[index] for pair in pairs) for index in (0, 1))
    return f"{1000 * middle:.0f} / {1000 * high:.0f}"


def _sweeps(rows: list[Row], limits: Limits) -> list[float]:
    return [*limits.bandwidth, *(sweep for row in rows for sweep in row.bandwidth)]


def document(rows: list[Row], *, limits: Limits) -> str:
    """All tables as Markdown."""
    sweeps, products = _sweeps(rows, limits), limits.products
    parts = [
        f"The memory's limit for one client in bf16: {limits.near(sweeps):.0f} tokens/s, from the "
        f"median of {len(sweeps)} sweeps ({statistics.median(sweeps) / 1e9:.1f} GB/s; "
        f"{min(sweeps) / 1e9:.1f} to {max(sweeps) / 1e9:.1f}). In the table each system is held to "
        "those around its own runs."
    ]
    if products:
        parts.append(
            f"The arithmetic's limit for many clients, from torch's best product of large matrices "
            f"({max(products) / 1e9:.0f} GFLOP/s; median {statistics.median(products) / 1e9:.0f}): "
            + ", ".join(
                f"{limits.arithmetic(Shape.parse(shape)):.0f} tokens/s of {shape}"
                for shape in dict.fromkeys(shape for row in rows for shape in row.cells)
            )
            + "."
        )
    for number, shape in enumerate(dict.fromkeys(shape for row in rows for shape in row.cells)):
        parts.append(
            f"**{shape} tokens (prompt/answer)**: tokens of answers per second, median (lowest to "
            f"highest), x: how many times faster '{OURS}' is"
        )
        parts.append(speed_table(rows, shape, limits=limits))
        if number == 0:
            parts.append(other_table(rows, shape))
    if faults := [f"- {row.name}: {row.fault}" for row in rows if row.fault]:
        parts += ["Not measured:", "\n".join(faults)]
    parts += ["Settings:", "\n".join(f"- {r.name}: {r.settings}" for r in rows if r.starts)]
    return "\n\n".join(parts) + "\n"


def draw(rows: list[Row], path: Path, *, limits: Limits) -> None:
    """Draw tokens per second by clients, a panel for each shape."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shapes = list(dict.fromkeys(shape for row in rows for shape in row.cells))
    if not shapes:
        return
    figure, panels = pyplot.subplots(
        1, len(shapes), figsize=(5.5 * len(shapes), 4.5), squeeze=False, layout="constrained"
    )
    palette = pyplot.get_cmap("tab10" if len(rows) <= 10 else "tab20")
    for panel, shape in zip(panels[0], shapes, strict=True):
        for index, row in enumerate(rows):
            points = sorted(row.cells.get(shape, {}).items())
            if points:
                speeds = [_speed(runs) for _, runs in points]
                ours = row.name.startswith("ours")
                panel.plot(
                    [count for count, _ in points],
                    speeds,
                    marker="o",
                    color=palette(index),
                    linewidth=2.2 if ours else 1.2,
                    linestyle="-" if ours else "--",
                    label=f"{row.name} ({row.precision})",
                )
        memory = limits.near(_sweeps(rows, limits))
        panel.axhline(memory, color="grey", linewidth=0.8, label="memory's limit for c=1, bf16")
        if limits.products:
            most = limits.arithmetic(Shape.parse(shape))
            panel.axhline(
                most, color="grey", linewidth=0.8, linestyle=":", label="arithmetic's limit"
            )
        counts = sorted({count for row in rows for count in row.cells.get(shape, {})})
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.set(xlabel="clients", ylabel="tokens of answers per second")
        panel.set_title(f"{shape} tokens (prompt/answer)")
        panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _speed(runs: list[Run]) -> float:
    return statistics.median(run.tokens_per_second for run in runs)


def line(texts: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(texts)} |"
