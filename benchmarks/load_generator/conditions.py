"""Under what conditions a benchmark of this folder ran."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from typing import Any


def conditions(load_before: float) -> dict[str, Any]:
    """Return command, machine and Python for a benchmark's JSON.

    Args:
        load_before: The machine's load average, 1 min, before the first run.
    """
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "load_average_before": round(load_before, 1),
            "load_average_now": round(os.getloadavg()[0], 1),
        },
        "python": platform.python_version(),
    }
