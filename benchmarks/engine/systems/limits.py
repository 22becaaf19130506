"""How many tokens per second a machine allows: its memory one client, its arithmetic many."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path

from benchmarks.engine.systems.measure import Shape


@dataclasses.dataclass(kw_only=True)
class Limits:
    """What was measured of a machine, and what a model in bf16 takes of it.

    Attributes:
        parameters: Of the model; an embedding that is the last layer, too, counts once.
        last_layer: Those of the last layer, which tokens of a prompt do not need.
        bandwidth: Bytes per second of each sweep over the memory.
        products: Floating-point operations per second of each large matrix product.
    """

    parameters: int
    last_layer: int
    bandwidth: list[float] = dataclasses.field(default_factory=list)
    products: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Limits:
        """Those of a model in safetensors; nothing is measured yet."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        weights = (folder / "model.safetensors").stat().st_size
        last = config["vocab_size"] * config["hidden_size"]
        return cls(parameters=weights // 2, last_layer=last)

    @property
    def memory(self) -> float:
        """Most tokens per second of one client, for which all weights are read once a token."""
        return max(self.bandwidth, default=0.0) / (2 * self.parameters)

    def near(self, bandwidth: list[float]) -> float:
        """The same from the median of these sweeps, where there are any."""
        return statistics.median(bandwidth) / (2 * self.parameters) if bandwidth else self.memory

    def arithmetic(self, shape: Shape) -> float:
        """Most tokens of answers per second of many clients; attention is not counted.

        A token is a multiplication and an addition for each parameter.
        """
        body = shape.prompt * (self.parameters - self.last_layer)
        work = 2 * (body + shape.answer * self.parameters)
        return max(self.products, default=0.0) * shape.answer / work
