"""vLLM's AsyncLLM on an asyncio loop in a thread of its own; tokens go in and come out.

vLLM computes in another process, EngineCore. What comes from it is put into `news`, and whoever
waits for news is told once until it takes them.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triton_hf.errors import EngineError

PING_SECONDS = 2.0
# An idle EngineCore that has not answered for so long will never do so again.
SILENT_SECONDS = 20.0
STOP_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class News:
    """New tokens of an answer; `ended` with the last ones, or with the error that ended it."""

    number: int
    tokens: Sequence[int] = ()
    ended: bool = False
    error: Exception | None = None


class Core:
    """One vLLM engine; its methods may be called on any thread.

    Attributes:
        steps: Forward passes that EngineCore has reported.
        usage: Share of the KV cache in use, 0 to 1; None before the first report.
        preemptions: Answers that lost their memory to others and were computed again.
        cached: Prompt tokens that were found in the prefix cache.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        """Call `told` on the loop's thread when there are news and the last ones were taken."""
        self.steps = 0
        self.usage: float | None = None
        self.preemptions = 0
        self.cached = 0
        self._told = told
        self._silent = True  # nobody has been told since news were taken
        self._news: collections.deque[News] = collections.deque()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ping: concurrent.futures.Future[Any] | None = None
        self._pinged = 0.0
        self._llm: Any = None
        self._died = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def start(self, arguments: Mapping[str, Any]) -> None:
        """Load the model; raises what vLLM raises."""

        async def start() -> Any:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            made = AsyncEngineArgs(**{"disable_log_stats": True, **arguments})
            return AsyncLLM.from_engine_args(made, stat_loggers=[_stat_logger(self)])

        self._llm = self._call(start())

    def begin(self, number: int, tokens: Sequence[int], sampling: Mapping[str, Any]) -> None:
        """Compute an answer; its tokens come as news of this number."""

        def begin() -> None:
            task = self._loop.create_task(self._follow(number, tokens, sampling))
            self._tasks[number] = task

        self._loop.call_soon_threadsafe(begin)

    def drop(self, number: int) -> None:
        """Stop to compute an answer, if it is not complete."""

        def drop() -> None:
            task = self._tasks.pop(number, None)
            if task is not None:
                task.cancel()  # vLLM aborts an answer whose reader is cancelled

        with contextlib.suppress(RuntimeError):  # the loop has ended, and the answer with it
            self._loop.call_soon_threadsafe(drop)

    @property
    def dead(self) -> bool:
        """Whether EngineCore has ended."""
        return self._died or self._llm.errored

    @property
    def has_news(self) -> bool:
        """Whether `take` returns something."""
        return bool(self._news)

    def take(self) -> list[News]:
        """Return what has come since the last call."""
        self._silent = True
        news = []
        with contextlib.suppress(IndexError):
            while True:
                news.append(self._news.popleft())
        return news

    def look(self, *, idle: bool) -> None:
        """Raise if EngineCore has died or, while nothing is asked of it, does not answer.

        While it computes its silence shows in the tokens; a long prefill is silent, too.

        Raises:
            EngineError: It is of no use any more.
        """
        if self.dead:
            raise EngineError("vLLM's EngineCore has died; the log above says why if it could")
        now = time.monotonic()
        if not idle:
            self._ping, self._pinged = None, now
        elif self._ping is None:
            if now - self._pinged >= PING_SECONDS:
                self._ping, self._pinged = self._spawn(self._llm.is_sleeping()), now
        elif self._ping.done():
            self._ping = None
        elif now - self._pinged >= SILENT_SECONDS:
            raise EngineError(f"vLLM's EngineCore has not answered for {SILENT_SECONDS:g} s")

    def prove(self, *, seconds: float) -> None:
        """Compute one token without a request; raises if that fails or takes too long."""

        async def prove() -> None:
            async for _ in self._generate("proof", [0], {"max_tokens": 1, "detokenize": False}):
                pass

        self._call(asyncio.wait_for(prove(), seconds))

    def stop(self) -> None:
        """End EngineCore and the loop, even if EngineCore hangs."""
        if self._llm is not None:
            if self._llm.output_handler is not None:  # it would report our end as a death
                self._loop.call_soon_threadsafe(self._llm.output_handler.cancel)
            self._llm.shutdown(timeout=STOP_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)

    # On the loop's thread.

    async def _follow(
        self, number: int, tokens: Sequence[int], sampling: Mapping[str, Any]
    ) -> None:
        try:
            async for output in self._generate(str(number), tokens, sampling):
                made = output.outputs[0]
                self._put(News(number=number, tokens=made.token_ids, ended=output.finished))
        except Exception as error:
            from vllm.v1.engine.exceptions import EngineDeadError

            self._died |= isinstance(error, EngineDeadError)
            self._put(News(number=number, ended=True, error=error))
        finally:
            self._tasks.pop(number, None)

    def _generate(self, name: str, tokens: Sequence[int], sampling: Mapping[str, Any]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if (guide := sampling.get("structured_outputs")) is not None:
            sampling = {**sampling, "structured_outputs": _structured_outputs(*guide)}
        how = SamplingParams(**sampling, output_kind=RequestOutputKind.DELTA)
        return self._llm.generate({"prompt_token_ids": list(tokens)}, how, name)

    def _put(self, news: News) -> None:
        self._news.append(news)
        if self._silent:
            self._silent = False
            self._told()

    def _spawn(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _call(self, coroutine: Any) -> Any:
        return self._spawn(coroutine).result()


def _stat_logger(core: Core) -> Any:
    """Return what vLLM calls with its statistics after each step."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StatLogger(StatLoggerBase):  # type: ignore[misc]  # an Any without vLLM
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, *_: object, **__: object
        ) -> None:
            core.steps += 1
            # vLLM calls its statistics unstable: one that is gone is a gauge that is missing.
            core.usage = getattr(scheduler_stats, "kv_cache_usage", core.usage)
            core.preemptions += getattr(iteration_stats, "num_preempted_reqs", 0)
            prefixes = getattr(scheduler_stats, "prefix_cache_stats", None)
            core.cached += getattr(prefixes, "hits", 0)

        def log_engine_initialized(self) -> None:
            pass

    return StatLogger


def _structured_outputs(kind: str, text: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    name = "json" if kind == "json_schema" else kind
    return StructuredOutputsParams(**{name: text}, disable_any_whitespace=kind == "json_schema")
