"""`triton-hf`: the entry point of the image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from triton_hf.errors import StoreError, TritonHFError

USAGE = """usage: triton-hf COMMAND ...

  tritonserver ARGS...   prepare this machine, then become tritonserver with ARGS
  sync                   download models into the store (the model-sync Job)
  wait                   wait until the store holds a generation of models
  probe                  startup, ready or live: exec probe of a server
  openai ARGS...         OpenAI's API for the models of a Triton
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "tritonserver": _tritonserver,
        "sync": _sync,
        "wait": _wait,
        "probe": _probe,
        "openai": _openai,
    }
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    command = commands.get(words[0])
    if command is None:
        print(f"triton-hf: unknown command '{words[0]}'\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        return command(words[1:])
    except StoreError as error:
        print(f"triton-hf {words[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except TritonHFError as error:
        print(f"triton-hf {words[0]}: {error}", file=sys.stderr)
        return 1


def _tritonserver(arguments: list[str]) -> int:
    from triton_hf.runtime import write_termination_log
    from triton_hf.server.launch import run_tritonserver

    try:
        run_tritonserver(arguments)
    except TritonHFError as error:
        write_termination_log(str(error))
        raise
    return 1


def _sync(arguments: list[str]) -> int:
    from triton_hf.store.commands import sync_command

    return sync_command(arguments)


def _wait(arguments: list[str]) -> int:
    from triton_hf.store.commands import wait_command

    return wait_command(arguments)


def _probe(arguments: list[str]) -> int:
    from triton_hf.server.probe import probe_command

    return probe_command(arguments)


def _openai(arguments: list[str]) -> int:
    from triton_openai.server import main as openai_command

    return openai_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
