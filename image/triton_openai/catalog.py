"""Which models there are: every ready one in Triton that has the tensors of a text model."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

from triton_openai.errors import ApiError, model_not_found
from triton_openai.triton import OUTPUTS, Triton

STREAM_SUFFIX = "_stream"
# A model that was added or removed is seen after so long, also while requests come.
FRESH_SECONDS = 5.0
# Requests for models that are not there ask Triton at most so often.
MISSING_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A text model.

    Attributes:
        inputs: Names of its input tensors.
        whole: Triton's name of the model that answers whole; None if there is none.
        pieces: Triton's name of the decoupled model that answers in pieces; None if there is none.
        max_model_len: Most tokens of prompt and answer together; None where its config does not
            say.
        root: Repository of its weights, else its name.
        revision: Of the repository; None where its config does not say.
    """

    name: str
    inputs: frozenset[str]
    whole: str | None
    pieces: str | None
    max_model_len: int | None = None
    root: str = ""
    revision: str | None = None

    def card(self, created: int) -> dict[str, Any]:
        """Return the model as `/v1/models` shows it."""
        return {
            "id": self.name,
            "object": "model",
            "created": created,
            "owned_by": "triton",
            "root": self.root or self.name,
            "parent": None,
            "max_model_len": self.max_model_len,
        }

    @property
    def fingerprint(self) -> str | None:
        """Name of the weights, for `system_fingerprint`."""
        return f"fp_{self.revision:.12}" if self.revision else None


class Catalog:
    """The models, as Triton said a moment ago."""

    def __init__(self, triton: Triton) -> None:
        """Ask this Triton."""
        self._triton = triton
        self._models: dict[str, Model] = {}
        self._asked = float("-inf")
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    async def list(self) -> list[Model]:
        """Return all models that are ready now.

        Raises:
            ApiError: Triton does not answer.
        """
        await self._refresh(older_than=0.0)
        return list(self._models.values())

    async def get(self, name: str) -> Model:
        """Return a model.

        Raises:
            ApiError: It is not there or not ready, or Triton does not answer.
        """
        age = time.monotonic() - self._asked
        if name not in self._models:
            await self._refresh(older_than=MISSING_SECONDS)
        elif age > FRESH_SECONDS and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self._refresh_quietly())
        try:
            return self._models[name]
        except KeyError:
            raise model_not_found(name) from None

    async def _refresh_quietly(self) -> None:
        with contextlib.suppress(ApiError):  # the request itself says that Triton does not answer
            await self._refresh(older_than=FRESH_SECONDS)

    async def _refresh(self, *, older_than: float) -> None:
        called = time.monotonic()
        async with self._lock:
            # Whoever waited for another's question takes its answer.
            if self._asked > called or called - self._asked < older_than:
                return
            ready = await self._triton.ready_models()
            configs = {}
            for name in ready:
                with contextlib.suppress(ApiError):  # it was unloaded between the two questions
                    configs[name] = await self._triton.config(name)
            self._models = text_models(configs)
            self._asked = time.monotonic()


def text_models(configs: dict[str, Any]) -> dict[str, Model]:
    """Return the text models among those with these `ModelConfig` messages.

    A decoupled `M_stream` beside `M` is M's streaming companion and no model of its own.
    """
    fitting = {name: config for name, config in configs.items() if _fits(config)}
    models = {}
    for name, config in fitting.items():
        base = name.removesuffix(STREAM_SUFFIX)
        if base != name and base in fitting and _decoupled(config):
            continue
        companion = f"{name}{STREAM_SUFFIX}"
        streams = companion in fitting and _decoupled(fitting[companion])
        whole = None if _decoupled(config) else name
        pieces = name if whole is None else (companion if streams else None)
        models[name] = _model(name, config, whole=whole, pieces=pieces)
    return models


def _model(name: str, config: Any, *, whole: str | None, pieces: str | None) -> Model:
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    longest = parameters.get("max_total_tokens", "")
    return Model(
        name=name,
        inputs=frozenset(item.name for item in config.input),
        whole=whole,
        pieces=pieces,
        max_model_len=int(longest) if longest.isdecimal() else None,
        root=parameters.get("repo_id", name),
        revision=parameters.get("revision"),
    )


def _decoupled(config: Any) -> bool:
    return bool(config.model_transaction_policy.decoupled)


def _fits(config: Any) -> bool:
    inputs = {item.name for item in config.input}
    needed = {item.name for item in config.input if not item.optional}
    outputs = {item.name for item in config.output}
    asked = inputs & {"messages", "prompt"}
    return bool(asked) and len(needed) <= 1 and needed <= asked and outputs.issuperset(OUTPUTS)
