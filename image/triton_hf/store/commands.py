"""The commands `triton-hf sync` and `triton-hf wait`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from triton_hf.errors import EXIT_CODES, EXIT_TIMEOUT, StoreError, in_short
from triton_hf.models.specification import read_spec
from triton_hf.progress import PROGRESS_SECONDS, Progress
from triton_hf.runtime import log_fault, write_termination_log
from triton_hf.store.hub import read_token
from triton_hf.store.layout import marker_path
from triton_hf.store.sync import KEPT_GENERATIONS, sync


def sync_command(arguments: list[str]) -> int:
    """`triton-hf sync`; the sentence of a failure also goes to the termination log."""
    codes = "\n".join(f"  {code}  {text}" for code, text in sorted(EXIT_CODES.items()))
    parser = argparse.ArgumentParser(
        prog="triton-hf sync",
        description="Download the models of a specification into the store.",
        epilog=f"exit status: 0 when the generation is complete, else\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--spec", required=True, type=Path, help="JSON file with the models")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--generation", required=True, help="name of the generation to write")
    parser.add_argument("--owner", default="", help="who uses it; those of others are left alone")
    parser.add_argument(
        "--keep",
        type=int,
        default=KEPT_GENERATIONS,
        help=f"generations of this owner that stay (default {KEPT_GENERATIONS})",
    )
    options = parser.parse_args(arguments)
    try:
        sync(
            models=read_spec(options.spec),
            store=options.store,
            generation=options.generation,
            token=read_token(),
            owner=options.owner,
            keep=max(1, options.keep),
        )
    except StoreError as error:
        write_termination_log(str(error))
        raise
    except Exception as error:
        log_fault(error)
        sentence = f"sync failed: {in_short(error)}"
        write_termination_log(sentence)
        raise StoreError(sentence) from None
    return 0


def wait_command(arguments: list[str]) -> int:
    """`triton-hf wait`: return when the store holds a generation."""
    parser = argparse.ArgumentParser(prog="triton-hf wait", description=wait_command.__doc__)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--generation", required=True)
    parser.add_argument("--timeout", type=float, default=3600, help="seconds (default 3600)")
    options = parser.parse_args(arguments)
    wait_for(options.store, options.generation, options.timeout)
    return 0


def wait_for(store: Path, generation: str, seconds: float) -> None:
    """Wait for the marker of a generation.

    Raises:
        StoreError: It did not appear in time.
    """
    progress = Progress()
    end = time.monotonic() + seconds
    said = float("-inf")
    while not marker_path(store, generation).exists():
        now = time.monotonic()
        if now > end:
            raise StoreError(
                f"the store at {store} did not get generation {generation} within {seconds:g} s; "
                "look at the log of the model-sync Job",
                exit_code=EXIT_TIMEOUT,
            )
        if now - said >= PROGRESS_SECONDS:
            progress.say(f"waiting for generation {generation} (model-sync writes it)")
            said = now
        time.sleep(min(0.5, max(0.0, end - now)))
    progress.say(f"generation {generation} is there")
