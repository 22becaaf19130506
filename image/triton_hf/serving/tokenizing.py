"""Long requests are tokenized in threads, so that the model takes other requests meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from triton_hf.engines.base import Engine
from triton_hf.errors import EngineError, TritonHFError
from triton_hf.runtime import log_fault

# A request with more characters is tokenized in a thread: a megabyte takes a second, and no other
# request of the model could be taken meanwhile. 20,000 take a few milliseconds.
LONG_CHARACTERS = 20_000
TOKENIZER_THREADS = 2


class TokenizerThreads:
    """Runs the tokenizing of requests; the rows in the threads count as queued."""

    def __init__(self, engine: Engine[Any]) -> None:
        """Keep room in the queue of this engine."""
        self._engine = engine
        self._rows = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="tokenize")

    def run(
        self, work: Callable[[], None], *, rows: int, failed: Callable[[TritonHFError], None]
    ) -> None:
        """Do the work in a thread; `failed` hears of any error there.

        Raises:
            TritonHFError: There is no room for the rows.
        """
        with self._lock:
            self._engine.check_room(rows, beside=self._rows)
            self._rows += rows

        def whole() -> None:
            try:
                work()
            except TritonHFError as error:
                failed(error)
            except Exception as error:  # a fault of ours must not leave a client without an answer
                log_fault(error)
                failed(EngineError("the server failed on this request"))
            finally:
                with self._lock:
                    self._rows -= rows

        self._pool.submit(whole)

    def stop(self) -> None:
        """End the threads; requests that are in them are queued first."""
        self._pool.shutdown()
