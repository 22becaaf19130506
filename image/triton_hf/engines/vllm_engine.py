"""A text engine on vLLM: its AsyncLLM as a library, behind our queue, limits and text.

At most `slots` answers are in vLLM at a time, so nothing waits where nobody sees it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from triton_hf.compute.model_files import ModelFiles
from triton_hf.cpu import apply_cpu_limits
from triton_hf.engines.base import IDLE_WAIT_SECONDS
from triton_hf.engines.text import (
    TextEngine,
    TextJob,
    engine_failure,
    longest_context,
    vocabulary_of,
)
from triton_hf.engines.vllm_arguments import (
    check_names,
    engine_arguments,
    is_cpu_build,
    refusal,
    sampling_arguments,
    set_environment,
)
from triton_hf.engines.vllm_core import Core, News
from triton_hf.errors import EngineError, SettingsError
from triton_hf.runtime import log
from triton_hf.store.layout import locate_weights

PROOF_SECONDS = 60.0


class VllmEngine(TextEngine):
    """Answers with a causal language model from the Hub, computed by vLLM."""

    _core: Core | None = None

    def _load(self) -> None:
        apply_cpu_limits()  # before torch is imported
        cpu = is_cpu_build()
        set_environment(cpu=cpu)
        version = _import_vllm()
        check_names(self.settings.engine_args, argument_names(), version=version)
        start = time.monotonic()
        folder = locate_weights(repo_id=self.settings.repo_id, revision=self.settings.revision)
        try:
            files = ModelFiles(folder, loads_all=True)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{self.settings.repo_id} cannot be served: {error}") from None
        self._use_tokenizer(
            files.tokenizer,
            generation=files.generation_config,
            longest=longest_context(files.config),
            vocabulary=vocabulary_of(files.config),
        )
        arguments = engine_arguments(self.settings, folder=folder, config=files.config, cpu=cpu)
        self._start(arguments)
        seconds = time.monotonic() - start
        log(f"{self.settings.repo_id}: ready in vLLM {version} after {seconds:.1f} s")

    def _start(self, arguments: dict[str, Any]) -> None:
        """Start vLLM.

        Raises:
            SettingsError: vLLM refuses the arguments or the model.
        """
        self._jobs: dict[int, TextJob] = {}
        self._seen_steps = 0
        core = Core(self.wake)
        try:
            core.start(arguments)
        except Exception as error:
            core.stop()
            raise SettingsError(
                f"{self.settings.repo_id} cannot be served by vLLM: {refusal(error)}"
            ) from error
        self._core = core

    def stop(self) -> None:
        """End the thread, then vLLM."""
        super().stop()
        if self._core is not None:
            self._core.stop()

    @property
    def _vllm(self) -> Core:
        if self._core is None:
            raise EngineError("vLLM is not started")
        return self._core

    # The engine's thread.

    def _look(self) -> None:
        self._vllm.look(idle=not self._running)

    def _advance(self, admitted: Sequence[TextJob]) -> bool:
        for job in admitted:
            self._begin(job)
        self._wait()
        news = self._vllm.take()
        for one in news:
            self._hear(one)
        steps, self._seen_steps = self._seen_steps, self._vllm.steps
        return bool(news) or self._seen_steps > steps

    def _begin(self, job: TextJob) -> None:
        self._jobs[job.number] = job
        how = sampling_arguments(job.work, self._end_tokens)
        self._vllm.begin(job.number, job.work.token_ids, how)

    def _wait(self) -> None:
        """Wait for news, for a request that can begin, or for one that ends."""
        with self._changed:
            free = self._waiting and len(self._running) < self.settings.slots
            busy = self._vllm.has_news or free or not self._cancelled_jobs.empty()
            if not busy and not self._stopping:
                self._changed.wait(IDLE_WAIT_SECONDS)

    def _hear(self, news: News) -> None:
        job = self._jobs.get(news.number)
        if job is None:
            return  # it has left
        if news.error is not None:
            if self._vllm.dead:
                return  # `_look` ends the engine, and every job gets its reason
            self._note_fault(news.error)
            self._fail(job, engine_failure())
            return
        self._push(job, news.tokens)
        if news.ended and not job.finished:
            self._note_fault(EngineError("vLLM ended an answer before its end"))
            self._fail(job, engine_failure())

    def _dropped(self, job: TextJob) -> None:
        if self._jobs.pop(job.number, None) is not None:
            self._vllm.drop(job.number)

    def _prove(self) -> None:
        self._vllm.prove(seconds=PROOF_SECONDS)

    def _kv_usage(self) -> float:
        usage = None if self._core is None else self._core.usage
        return super()._kv_usage() if usage is None else usage


def _import_vllm() -> str:
    """Return the version of vLLM.

    Raises:
        SettingsError: This image has none.
    """
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise SettingsError(
            "engine vllm needs vLLM, which this image lacks; use the image of the Dockerfile's "
            "target 'vllm', or engine transformers"
        ) from None
    return str(vllm.__version__)


def argument_names() -> frozenset[str]:
    """Return the names of the engine arguments that vLLM knows."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    return frozenset(field.name for field in dataclasses.fields(AsyncEngineArgs))
