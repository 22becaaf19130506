"""Our model behind Triton, whole and streamed, and a tutorial's `model.py` behind the same one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.systems.base import Answer, Prompt, UnavailableError
from benchmarks.engine.systems.http_client import Request, ask_all
from embedded_triton.fetch import EmbeddedError, ensure_tree
from embedded_triton.server import Server, running_server
from tools.demo_model import REPOSITORY, LocalModel
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_hf.store.layout import weights_folder

MODEL = "smollm2"
TUTORIAL = Path(__file__).parents[1] / "tutorial"


def infer(prompt: Prompt, tokens: int) -> tuple[str, dict[str, Any]]:
    """A request that is answered whole."""
    texts = {"system_message": prompt.system, "user_message": prompt.user}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [[text]]}
        for name, text in texts.items()
    ]
    parameters = {"max_tokens": tokens, "ignore_eos": True}
    return f"/v2/models/{MODEL}/infer", {"inputs": inputs, "parameters": parameters}


def stream(prompt: Prompt, tokens: int) -> tuple[str, dict[str, Any]]:
    """A request whose answer is streamed."""
    texts = {"system_message": prompt.system, "user_message": prompt.user}
    body = {**texts, "max_tokens": tokens, "ignore_eos": True}
    return f"/v2/models/{MODEL}_stream/generate_stream", body


class AskedTriton:
    """A Triton that is ready, and how it is asked."""

    def __init__(self, server: Server, request: Request) -> None:
        """Ask this server with such requests."""
        self._server, self._request = server, request
        self.session = server.process.pid

    def streaming(self) -> AskedTriton:
        """The same server, asked for streams."""
        return AskedTriton(self._server, stream)

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, clients: int) -> list[Answer]:
        """Answer all prompts with this many tokens each, `clients` of them at any time."""
        port = self._server.ports.http
        return ask_all(port, self._request, prompts, tokens=tokens, clients=clients)


class OurTriton:
    """Our engine behind Triton's HTTP endpoints."""

    serial = False

    def __init__(
        self,
        *,
        streams: bool,
        model: LocalModel,
        clients: int,
        longest: int,
        weights: str = "auto",
    ) -> None:
        """Ask for streams or for whole answers; room for `clients` of `longest` tokens each."""
        self.precision = "bf16" if weights == "auto" else weights
        kind = "" if weights == "auto" else f" {weights}"
        self.name = f"ours{kind}, stream" if streams else f"ours{kind}, infer"
        self._request: Request = stream if streams else infer
        self._model = model
        self._parameters = {
            "slots": str(clients),
            "max_queue": str(2 * clients),
            "max_prompt_tokens": str(longest - 1),
            "max_total_tokens": str(longest),
            "dtype": "bfloat16",
            "device": "cpu",
            "weights": weights,
        }
        self.settings = ", ".join(f"{key} {value}" for key, value in self._parameters.items())

    def prepare(self, *, install: bool) -> None:
        """Unpack Triton."""
        _unpack()

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[AskedTriton]:
        """Run it until the block ends."""
        revision = self._model.revision
        weights = weights_folder(folder / "store", REPOSITORY, revision)
        weights.parent.mkdir(parents=True)
        weights.symlink_to(self._model.folder, target_is_directory=True)
        spec = ModelSpec(
            name=MODEL, repository=REPOSITORY, revision=revision, parameters=self._parameters
        )
        write_model(folder / "models", spec)
        environment = {"TRITON_HF_STORE": str(folder / "store")}
        with _server(folder, environment) as server:
            yield AskedTriton(server, self._request)


class Tutorial:
    """`generate` of transformers in a `model.py` as tutorials write it: one request at a time."""

    name = "tutorial model.py"
    precision = "bf16"
    serial = True
    settings = "transformers generate, one request at a time"

    def __init__(self, *, model: LocalModel) -> None:
        """Serve this model."""
        self._model = model

    def prepare(self, *, install: bool) -> None:
        """Unpack Triton."""
        _unpack()

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[AskedTriton]:
        """Run it until the block ends."""
        shutil.copytree(
            TUTORIAL, folder / "models" / MODEL, ignore=shutil.ignore_patterns("__pycache__")
        )
        with _server(folder, {"MODEL_FOLDER": str(self._model.folder)}) as server:
            yield AskedTriton(server, infer)


def _unpack() -> None:
    try:
        ensure_tree()
    except EmbeddedError as error:
        raise UnavailableError(str(error)) from None


@contextlib.contextmanager
def _server(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    arguments = [f"--model-repository={folder / 'models'}"]
    try:
        with running_server(
            arguments=arguments, workdir=folder, environment=environment, wait_seconds=300
        ) as server:
            yield server
    except EmbeddedError as error:
        raise UnavailableError(str(error)[-300:]) from None
