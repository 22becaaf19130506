"""Wait for a promise to come true, and show the last reason when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(check: Callable[[], T], *, seconds: float, every: float = 1.0) -> T:
    """Call `check` until it neither raises nor returns False; return what it returned.

    Args:
        check: an assertion: it raises, or returns False, while the promise is not kept yet.
        seconds: how long to go on.
        every: pause between two calls, in seconds.

    Raises:
        TimeoutError: with the last error of `check` as its cause and in its text.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            result = check()
            if result is not False:
                return result
            last: Exception = AssertionError("the check returned False")
        except Exception as error:  # an assertion, or the API not answering yet
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds:.0f} s: {last}") from last
        time.sleep(every)
