"""A step that is recorded once and then repeated; as a CUDA graph, or by calling it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], torch.Tensor]
# Records a step; what it returns runs the step again and gives the same tensor each time or a new
# one, valid until the next step. A step reads and writes tensors that stay where they are, and
# looks at none of their values on the host.
Recorder = Callable[[Step], Step]

_WARM_UPS = 2


def eager(step: Step) -> Step:
    """Repeat a step by calling it."""
    return step


class GraphRecorder:
    """Records steps as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        """Start with an empty pool."""
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Record a step.

        Raises:
            RuntimeError: It does what a graph cannot repeat.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):  # kernels are chosen and workspaces made here
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


def recorder_for(device: torch.device) -> Recorder:
    """What records steps on this device."""
    return GraphRecorder() if device.type == "cuda" else eager
