"""Exec probes of a server: startup, ready and live. Standard library only, for a fast start.

Triton 2.51 stays ready for ever when a model's process has died or hangs, so the probes also
read the heartbeat files that models and their streaming companions write, idle or busy.

  startup, ready  Triton and all its models are ready, every model's process lives, and none has
                  been silent for longer than TRITON_HF_UNREADY_SECONDS (default 40)
  live            Triton answers, every model's process lives, and none has been silent for longer
                  than TRITON_HF_STALE_SECONDS (default 60)

A model whose engine has ended says so in its heartbeat, and all three repeat its reason at once.
A model that hangs leaves the rotation first and is restarted later: a long prefill is silent, too,
and comes back by itself.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

# With two probes five seconds apart a hang is out of the rotation within a minute, and a CPU may
# take most of a minute for the prompts of all slots.
DEFAULT_UNREADY_SECONDS = 40.0
DEFAULT_STALE_SECONDS = 60.0
ANSWER_SECONDS = 4.0
KINDS = ("startup", "ready", "live")


def probe_command(arguments: list[str]) -> int:
    """`triton-hf probe KIND`: 0 when all is well, else 1 and one sentence on stderr."""
    if len(arguments) != 1 or arguments[0] not in KINDS:
        print(f"usage: triton-hf probe {'|'.join(KINDS)}", file=sys.stderr)
        return 2
    problem = find_problem(arguments[0])
    if problem is None:
        return 0
    print(f"triton-hf probe {arguments[0]}: {problem}", file=sys.stderr)
    return 1


def find_problem(kind: str) -> str | None:
    """Return what is wrong, as one sentence, or None."""
    root = Path(os.environ.get("TRITON_HF_RUNTIME_DIR") or "/tmp/triton_hf")  # noqa: S108
    # Models first: they know why the server is not ready, or about to end.
    for file in sorted((root / "health").glob("*.json")):
        problem = _model_problem(file, kind)
        if problem is not None:
            return problem
    return _ask("/v2/health/live" if kind == "live" else "/v2/health/ready")


def _ask(path: str) -> str | None:
    # By hand: to import an HTTP client takes four times as long as all the rest of a probe.
    try:
        port = int(os.environ.get("TRITON_HF_HTTP_PORT") or "8000")
        host = os.environ.get("TRITON_HF_HTTP_HOST") or "127.0.0.1"
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode()
            )
            head = connection.recv(4096)
        status = int(head.split(None, 2)[1])
    except (OSError, ValueError, IndexError, OverflowError) as error:
        return f"the server does not answer {path}: {error}"
    if status == 200:
        return None
    return f"{path} says {status}: the server or one of its models is not ready"


def _model_problem(file: Path, kind: str) -> str | None:
    model = file.stem
    try:
        beat = json.loads(file.read_text("utf-8"))
        pid, state = int(beat["pid"]), beat["state"]
        if state == "failed":
            return f"model '{model}': {beat['reason']}"
        silent = time.monotonic() - float(beat["monotonic"])
        queued = int(beat["running"]) + int(beat["waiting"])
    except FileNotFoundError:
        return None  # the model was unloaded between the listing and now
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"the heartbeat of model '{model}' cannot be read: {error!r}"
    if not _alive(pid):
        return f"the process of model '{model}' (pid {pid}) has died"
    if state == "loading":
        return f"model '{model}' is loading" if kind != "live" else None
    if silent > _silence_allowed(kind):
        return f"model '{model}' has been silent for {silent:.0f} s with {queued} requests queued"
    return None


def _silence_allowed(kind: str) -> float:
    """Seconds; a server that is restarted for a silence is not ready in it either."""
    stale = float(os.environ.get("TRITON_HF_STALE_SECONDS") or DEFAULT_STALE_SECONDS)
    if kind == "live":
        return stale
    return min(stale, float(os.environ.get("TRITON_HF_UNREADY_SECONDS") or DEFAULT_UNREADY_SECONDS))


def _alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


if __name__ == "__main__":
    sys.exit(probe_command(sys.argv[1:]))
