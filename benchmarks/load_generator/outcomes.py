"""A locustfile beside the project's own: it writes each outcome of a stream to a file.

    OUTCOMES=FOLDER locust -f load_testing/locustfile.py,benchmarks/load_generator/outcomes.py ...

One line of JSON for each request, in a file for each process: its place in the log of a server with
`--numbered`, its time to first token and the moments of its events, in seconds.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, TextIO

from locust import events


@functools.cache
def _file(process: int) -> TextIO:
    return (Path(os.environ["OUTCOMES"]) / f"{process}.jsonl").open("a", buffering=1)


@events.llm_request.add_listener
def _write(outcome: Any, **_: Any) -> None:
    moments = [moment for moment, _ in outcome.tokens]
    line = {"place": outcome.prompt_tokens, "ttft": outcome.ttft, "moments": moments}
    print(json.dumps(line), file=_file(os.getpid()))
