"""The model store: weights and generated repositories on a volume, published atomically.

    DIR/weights/ORG--NAME/COMMIT/            files of one model at one commit
    DIR/repository/G/M/config.pbtxt, 1/model.py
    DIR/repository/G.ready                   marker, written last; says whose generation it is

Only `sync` writes, one at a time, and everything appears by rename: a server that sees the
marker sees whole models. Downloads go to DIR/incoming, and a run after a killed one fetches only
the files that are not whole.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from triton_hf.errors import (
    EXIT_CODES,
    EXIT_DISK,
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    StoreError,
)
from triton_hf.hub import download_snapshot, download_to_cache, read_token, resolve_commit
from triton_hf.pbtxt import read_config, string_parameters
from triton_hf.repository import write_model
from triton_hf.runtime import write_termination_log
from triton_hf.specification import ModelSpec, read_spec

PROGRESS_SECONDS = 8
LOCK_SECONDS = 3600
KEPT_GENERATIONS = 3
_GENERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Progress:
    """Prints lines with the elapsed time to stderr, one at least every `PROGRESS_SECONDS`."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line."""
        elapsed = time.monotonic() - self._start
        print(f"{elapsed:7.1f} s  {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def watching(self, folder: Path, what: str) -> Iterator[None]:
        """While the block runs, say now and then how large a folder has become."""
        done = threading.Event()

        def report() -> None:
            while not done.wait(PROGRESS_SECONDS):
                self.say(f"{what}: {folder_bytes(folder) / 1e6:.0f} MB so far")

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


# Where the server finds weights.


def locate_weights(*, repo_id: str, revision: str | None) -> Path:
    """Return the folder of a model's files.

    With `TRITON_HF_STORE` they are in the store and nothing is downloaded; without it they come
    from the Hub's own cache, or from the Hub unless `HF_HUB_OFFLINE=1`.

    Raises:
        StoreError: They are not there, or cannot be downloaded.
    """
    store = os.environ.get("TRITON_HF_STORE")
    if not store:
        return download_to_cache(repo_id=repo_id, revision=revision)
    folder = weights_folder(Path(store), repo_id, revision or "")
    if revision is None or not folder.is_dir():
        raise StoreError(
            f"{repo_id} at revision {revision} is not in the store {store}; run sync first",
            exit_code=EXIT_NOT_FOUND,
        )
    return folder


def weights_folder(store: Path, repo_id: str, commit: str) -> Path:
    """Where the files of a repository at a commit lie."""
    return store / "weights" / repo_id.replace("/", "--") / commit


def marker_path(store: Path, generation: str) -> Path:
    """The file that says that a generation is complete."""
    return store / "repository" / f"{generation}.ready"


# Sync.


def sync(
    *,
    models: list[ModelSpec],
    store: Path,
    generation: str,
    token: str | None,
    owner: str = "",
    keep: int = KEPT_GENERATIONS,
) -> None:
    """Bring the store to hold these models as this generation.

    Args:
        models: What is wanted.
        store: Folder of the store.
        generation: Its name.
        token: For the Hub.
        owner: Who uses it. Generations of other owners, and what they need, are left alone.
        keep: How many generations of this owner stay, the new one among them.

    Raises:
        StoreError: Something is missing or full; what was published before is untouched.
    """
    if not _GENERATION.fullmatch(generation):
        raise StoreError(f"'{generation}' is not a name for a generation", exit_code=EXIT_USAGE)
    progress = Progress()
    try:
        for part in ("weights", "repository", "incoming"):
            (store / part).mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(store, progress):
            commits = _fetch_all(models, store, token, progress)
            _publish_repository(models, commits, store, generation)
            marker = {
                "generation": generation,
                "owner": owner,
                "models": commits,
                "created": int(time.time()),
            }
            _write_atomically(marker_path(store, generation), json.dumps(marker))
            names = ", ".join(spec.name for spec in models)
            progress.say(f"generation {generation} is ready: {names}")
            _clean(store, progress, owner=owner, keep=keep)
    except OSError as error:
        raise _disk_error(store, error) from None


def _fetch_all(
    models: list[ModelSpec], store: Path, token: str | None, progress: Progress
) -> dict[str, str]:
    return {
        spec.name: _fetch(spec, store, token, progress)
        for spec in models
        if spec.repository is not None
    }


def _fetch(spec: ModelSpec, store: Path, token: str | None, progress: Progress) -> str:
    """Make sure that the weights of a model are published; return their commit."""
    repo_id = spec.repository or ""
    if spec.revision is not None and _COMMIT.fullmatch(spec.revision):
        commit = spec.revision
    else:
        commit = resolve_commit(repo_id=repo_id, revision=spec.revision, token=token)
    target = weights_folder(store, repo_id, commit)
    if target.is_dir():
        progress.say(f"{spec.name}: {repo_id} at {commit[:12]} is in the store already")
        return commit
    incoming = store / "incoming" / f"{repo_id.replace('/', '--')}--{commit}"
    # What a killed run left of a file has a name of its own: nothing would ever go on with it.
    for leftover in incoming.rglob("*.incomplete"):
        leftover.unlink(missing_ok=True)
    progress.say(f"{spec.name}: downloading {repo_id} at {commit[:12]}")
    with progress.watching(incoming, spec.name):
        download_snapshot(repo_id=repo_id, commit=commit, folder=incoming, token=token)
    if not any(incoming.glob("*.safetensors")):
        raise StoreError(
            f"{repo_id} at {commit[:12]} holds no .safetensors file, and nothing else is loaded",
            exit_code=EXIT_NOT_FOUND,
        )
    shutil.rmtree(incoming / ".cache", ignore_errors=True)
    _flush(incoming)
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming.rename(target)
    progress.say(f"{spec.name}: published, {folder_bytes(target) / 1e6:.0f} MB")
    return commit


def _publish_repository(
    models: list[ModelSpec], commits: Mapping[str, str], store: Path, generation: str
) -> None:
    root = store / "repository"
    partial = root / f".{generation}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for spec in models:
        commit = commits.get(spec.name)
        write_model(partial, dataclasses.replace(spec, revision=commit or spec.revision))
    _flush(partial)
    target = root / generation
    if target.exists():
        # The same generation again (a Job that was killed before its marker, or run twice).
        old = root / f".{generation}.old"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return
    partial.rename(target)


def _clean(store: Path, progress: Progress, *, owner: str, keep: int) -> None:
    """Remove an owner's oldest generations, and weights that no generation needs any more."""
    root = store / "repository"
    markers = sorted(root.glob("*.ready"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for marker in [one for one in markers if _owner(one) in ("", owner)][keep:]:
        marker.unlink()
    kept = {marker.name.removesuffix(".ready") for marker in root.glob("*.ready")}
    for folder in root.iterdir():
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    needed = {
        weights_folder(store, parameters["repo_id"], parameters["revision"])
        for config in root.glob("*/*/config.pbtxt")
        if "revision" in (parameters := string_parameters(read_config(config)))
    }
    for folder in (store / "weights").glob("*/*"):
        if folder not in needed:
            progress.say(f"removing {folder.parent.name} at {folder.name[:12]}: no longer used")
            shutil.rmtree(folder, ignore_errors=True)
    for folder in (store / "incoming").iterdir():
        shutil.rmtree(folder, ignore_errors=True)


def _owner(marker: Path) -> str:
    """Whose generation it is; empty where an earlier version wrote it."""
    try:
        return str(json.loads(marker.read_text("utf-8")).get("owner", ""))
    except (ValueError, AttributeError):
        return ""


@contextlib.contextmanager
def _one_at_a_time(store: Path, progress: Progress) -> Iterator[None]:
    with (store / ".lock").open("w", encoding="utf-8") as file:
        end = time.monotonic() + LOCK_SECONDS
        last = float("-inf")
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now > end:
                    raise StoreError(
                        "another sync held the store's lock for an hour", exit_code=EXIT_TIMEOUT
                    ) from None
                if now - last >= PROGRESS_SECONDS:
                    progress.say("waiting for another sync on this store")
                    last = now
                time.sleep(0.5)
        yield


def _flush(folder: Path) -> None:
    """Make a folder readable for all and bring it to the disk, before a rename publishes it."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        path.chmod(0o755 if path.is_dir() else 0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _disk_error(store: Path, error: OSError) -> StoreError:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(store).free
            return StoreError(
                f"the volume at {store} is full ({free / 1e6:.0f} MB left); make it larger, then "
                "run sync again: it goes on where it stopped",
                exit_code=EXIT_DISK,
            )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StoreError(f"the volume at {store} is not writable: {error}", exit_code=EXIT_DISK)
    return StoreError(f"the store at {store} failed: {error}", exit_code=EXIT_DISK)


# Commands.


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
