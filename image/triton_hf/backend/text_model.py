"""Triton's side of a text model: `/infer`, `/generate`, unary gRPC, and the streaming companion."""

from __future__ import annotations

from typing import Any

from triton_hf.backend.clients import Ticket
from triton_hf.backend.served_model import Done, ServedModel
from triton_hf.backend.tensors import read_inputs, read_parameters, text_response
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings
from triton_hf.serving.service import Service
from triton_hf.serving.stream_server import StreamServer, events_per_second


class TextModel(ServedModel):
    """One Hugging Face text model; `model.py` names it `TritonPythonModel`."""

    def _metrics(self, settings: ModelSettings) -> Metrics:
        return Metrics()

    def _open(self, name: str, settings: ModelSettings, engine: Any, metrics: Metrics) -> None:
        self._service = Service(engine=engine, metrics=metrics)
        self._streams = StreamServer(
            model=name, service=self._service, events_per_second=events_per_second(settings)
        )
        self._streams.start()

    def _ask(self, request: Any, done: Done) -> Ticket:
        inputs = read_inputs(request)
        return self._service.submit_whole(inputs, read_parameters(request), done)

    def _response(self, result: Any) -> Any:
        return text_response(result)

    def _close_streams(self) -> None:
        self._streams.stop()

    def _close(self) -> None:
        self._service.stop()
