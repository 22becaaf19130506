"""Which models there are: every ready one in Triton that has the tensors of a task."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from triton_openai.errors import ApiError, model_not_found
from triton_openai.triton import OUTPUTS, Triton

STREAM_SUFFIX = "_stream"
# A model that was added or removed is seen after so long, also while requests come.
FRESH_SECONDS = 5.0
# Requests for models that are not there ask Triton at most so often.
MISSING_SECONDS = 1.0


# Task -> the inputs and outputs of its models, and where they are served.
TASKS: Mapping[str, tuple[frozenset[str], frozenset[str], str]] = {
    "rank": (frozenset({"query", "text"}), frozenset({"score", "prompt_tokens"}), "/v1/rerank"),
    "embed": (frozenset({"text"}), frozenset({"embedding", "prompt_tokens"}), "/v1/embeddings"),
    "classify": (frozenset({"text"}), frozenset({"label", "score"}), "Triton's infer"),
}
TEXT = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a task.

    Attributes:
        task: `text`, or one of `TASKS`.
        rows: Most rows of one request to Triton.
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
    task: str = TEXT
    rows: int = 1

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
            "task": self.task,
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

    async def get(self, name: str, *, task: str | None = TEXT) -> Model:
        """Return a model of a task; None for any.

        Raises:
            ApiError: It is not there, not ready or of another task, or Triton does not answer.
        """
        model = await self._get(name)
        if task is not None and model.task != task:
            place = "/v1/chat/completions" if model.task == TEXT else TASKS[model.task][2]
            raise ApiError(
                f"The model '{name:.100}' is for the task '{model.task}'; use {place}.",
                param="model",
                code="unsupported_model",
            )
        return model

    async def only(self, task: str) -> Model:
        """Return the one model of a task.

        Raises:
            ApiError: There is none, or more than one; or Triton does not answer.
        """
        found = [model for model in await self.list() if model.task == task]
        if len(found) == 1:
            return found[0]
        names = ", ".join(f"'{model.name}'" for model in found)
        text = f"name one of {names}" if found else f"there is none for the task '{task}'"
        raise ApiError(f"'model' is missing; {text}.", param="model", code="model_not_found")

    async def _get(self, name: str) -> Model:
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
            self._models = {**text_models(configs), **other_models(configs)}
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


def other_models(configs: dict[str, Any]) -> dict[str, Model]:
    """Return the models of `TASKS` among those with these `ModelConfig` messages."""
    models = {}
    for name, config in configs.items():
        task = _task(config)
        if task is not None:
            model = _model(name, config, whole=name, pieces=None)
            rows = max(1, config.max_batch_size)
            models[name] = dataclasses.replace(model, task=task, rows=rows)
    return models


def _task(config: Any) -> str | None:
    inputs = {item.name for item in config.input}
    needed = {item.name for item in config.input if not item.optional}
    outputs = {item.name for item in config.output}
    for task, (asked, made, _) in TASKS.items():
        fits = inputs >= asked >= needed and outputs >= made
        if fits and not _decoupled(config):
            return task
    return None


def _model(name: str, config: Any, *, whole: str | None, pieces: str | None) -> Model:
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    longest = parameters.get("max_total_tokens") or parameters.get("max_input_tokens", "")
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
