"""Triton's side of the tasks `embed`, `rank` and `classify`: `/infer`, `/generate`, unary gRPC."""

from __future__ import annotations

from typing import Any

from triton_hf.backend.clients import Ticket
from triton_hf.backend.served_model import Done, ServedModel
from triton_hf.backend.tensors import pooling_response, read_inputs, read_parameters
from triton_hf.metrics import POOLING_FAMILIES, Metrics
from triton_hf.models.settings import ModelSettings
from triton_hf.serving.pooling import PoolingService


class PoolingModel(ServedModel):
    """One embedding model, reranker or classifier; `model.py` names it `TritonPythonModel`."""

    def _metrics(self, settings: ModelSettings) -> Metrics:
        return Metrics(POOLING_FAMILIES)

    def _open(self, name: str, settings: ModelSettings, engine: Any, metrics: Metrics) -> None:
        self._task = settings.kind.task
        self._service = PoolingService(engine=engine, metrics=metrics)

    def _ask(self, request: Any, done: Done) -> Ticket:
        inputs = read_inputs(request, self._task)
        return self._service.submit(inputs, read_parameters(request), done)

    def _response(self, result: Any) -> Any:
        return pooling_response(result, self._task)

    def _close_streams(self) -> None:
        """There are none."""

    def _close(self) -> None:
        self._service.stop()
