"""The load test, on a laptop and in the cluster; see README.md beside it for all options.

locust -f load_testing/locustfile.py --headless -u 1 -r 1 -t 5m --host http://localhost \
    --data load_testing/example/data_llama.json --schema model_repository/llama3-8b/config.pbtxt
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from locust import events
from locust.event import EventHook

sys.path.insert(0, str(Path(__file__).resolve().parent))

from triton_load import options, startup, users
from triton_load.users import GrpcUser, InferUser, OpenAIUser, StreamUser

__all__ = ["GrpcUser", "InferUser", "OpenAIUser", "StreamUser"]

# Fired with `outcome`, a triton_load.measure.Outcome, after each request: times to first token and
# between tokens, which Locust's own `request` event has no room for.
events.llm_request = EventHook()  # type: ignore[attr-defined]


@events.init_command_line_parser.add_listener
def _add_arguments(parser: Any) -> None:
    options.add_arguments(parser)


@events.init.add_listener
def _start(environment: Any, **_: Any) -> None:
    users.choose(environment)
    startup.start(environment)
