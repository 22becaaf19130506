"""An engine without a model: set times, set slots, words instead of tokens.

For tests of the server, the cluster and the load test, where a real model would only cost time.
It needs nothing but the standard library.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from triton_hf.contract import Conversation
from triton_hf.engines.text import TextEngine, TextJob

_MAX_STEP_SECONDS = 0.5


class SimulatedEngine(TextEngine):
    """Answers with the words of the question, again and again, until `max_tokens`.

    A word is a token. The first comes `time_to_first_token` after the job got its slot, each next
    `inter_token` later, however many slots are busy.
    """

    def _load(self) -> None:
        seconds = self.settings.simulated.load
        if seconds:
            print(f"simulated engine: loading for {seconds:g} s", file=sys.stderr, flush=True)
            time.sleep(seconds)
        self._due: dict[int, float] = {}

    def _tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], int]:
        return (), sum(len(message.content.split()) for message in conversation)

    def _advance(self, admitted: Sequence[TextJob]) -> bool:
        now = time.monotonic()
        for job in admitted:
            self._due[job.number] = now + self.settings.simulated.time_to_first_token
        live = {job.number for job in self._running}
        self._due = {number: due for number, due in self._due.items() if number in live}
        self._wait(min(self._due.values()))
        now = time.monotonic()
        for job in list(self._running):
            if self._due.get(job.number, now + 1) <= now:
                self._due[job.number] += self.settings.simulated.inter_token
                self._emit(job, _word(job))
        return True

    def _prove(self) -> None:
        """Nothing can be broken where nothing is computed."""

    def _wait(self, until: float) -> None:
        with self._changed:
            left = min(until - time.monotonic(), _MAX_STEP_SECONDS)
            if left > 0 and not self._stopping:
                self._changed.wait(left)  # a new or a cancelled job ends the wait early


def _word(job: TextJob) -> str:
    words = job.work.conversation[-1].content.split()
    word = words[job.completion_tokens % len(words)]
    return word if job.completion_tokens == 0 else f" {word}"
