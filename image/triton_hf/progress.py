"""Progress of long work: lines on stderr with the elapsed time. Standard library only."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

PROGRESS_SECONDS = 8.0


class Progress:
    """Prints lines with the elapsed time to stderr, each after the name of the work."""

    def __init__(self, name: str = "") -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._prefix = f"{name}: " if name else ""

    def say(self, text: str) -> None:
        """Print one line."""
        elapsed = time.monotonic() - self._start
        print(f"{self._prefix}{elapsed:7.1f} s  {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def watching(self, describe: Callable[[], str]) -> Iterator[None]:
        """While the block runs, print what `describe` returns every `PROGRESS_SECONDS`."""
        done = threading.Event()

        def report() -> None:
            while not done.wait(PROGRESS_SECONDS):
                self.say(describe())

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name of a step, and again every `PROGRESS_SECONDS` while the block runs."""
        start = time.monotonic()
        self.say(name)
        with self.watching(lambda: f"{name} ... {time.monotonic() - start:.0f} s"):
            yield
