"""Where this package reaches past what Locust and gevent promise; it does so nowhere else.

Each function below replaces or reads one name that no documentation promises. They were read at
the versions of `READ_AT`, and `tests/test_locust_bridge.py` has a test for each: who takes another
version runs those tests first, and mends here what they show.
"""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import gevent

# Locust changes the process that imports it, so only who needs it imports it.
if TYPE_CHECKING:
    from locust.runners import Runner

READ_AT: Mapping[str, str] = {"locust": "2.47.0", "gevent": "26.9.0"}


def check_option(parser: ArgumentParser, option: str, check: Callable[[str], str]) -> None:
    """Let the parser read an option of Locust's own by `check`, as if it had been its `type`.

    Locust opens its files where the fault is a traceback: before the load with the exit code of a
    missed objective, or after all of it.
    """
    parser._option_string_actions[option].type = check


def before_start(runner: Runner, note: Callable[[], None]) -> None:
    """Call `note` before each `runner.start`, which Locust looks up on the runner itself.

    The event `test_start` is too late: Locust's clock of the run time runs by then, and its
    listeners may take their time.
    """
    start_now = runner.start

    def start(*words: Any, **named: Any) -> None:
        note()
        start_now(*words, **named)

    runner.start = start  # type: ignore[method-assign]


def before_quit(runner: Runner, prepare: Callable[[], None]) -> Callable[[], None]:
    """Call `prepare` before each `runner.quit`; return the quit that skips it.

    Locust's own quit tells workers to end, and takes no counts that they still hold.
    """
    quit_now: Callable[[], None] = runner.quit

    def quit_later() -> None:
        prepare()
        quit_now()

    runner.quit = quit_later  # type: ignore[method-assign]
    return quit_now


def on_crash(handle: Callable[[], NoReturn]) -> None:
    """Call `handle` for an exception that ends Locust, after its traceback.

    Python's own exit code, 1, is that of a missed objective. Locust writes its files after the last
    event that it fires, so nothing but `sys.excepthook` sees a full volume end it there.
    """

    def crash(*found: Any) -> None:
        sys.__excepthook__(*found)
        handle()

    sys.excepthook = crash


def leave(code: int) -> NoReturn:
    """End the process at once, whatever Locust's main greenlet waits for; what was printed is kept.

    `sys.exit` in any other greenlet ends only that one.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


def end_csv_quietly() -> None:
    """Let Locust's CSV writer end without a traceback when its files are closed under it."""
    from locust.stats import StatsCSVFileWriter

    write = StatsCSVFileWriter.stats_writer

    def stats_writer(self: Any) -> None:
        try:
            write(self)
        except ValueError:
            if not self.requests_csv_filehandle.closed:
                raise

    StatsCSVFileWriter.stats_writer = stats_writer  # type: ignore[method-assign]


def wrap_resolver(kind: type[Any]) -> None:
    """Let `kind` stand before gevent's resolver in this thread; once or more."""
    hub = gevent.get_hub()
    if not isinstance(hub.resolver, kind):
        hub.resolver = kind(hub.resolver)


def is_stopping(user: Any) -> bool:
    """Whether Locust wants a user to end after its request; `stop(force=False)` only notes it."""
    from locust.user.task import LOCUST_STATE_STOPPING

    return bool(user._state == LOCUST_STATE_STOPPING)
