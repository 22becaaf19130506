"""Fills the model store; everything appears by rename, so a server never sees half a model.

One sync at a time. Downloads go to DIR/incoming, and a run after a killed one fetches only the
files that are not whole. `store.layout` says where things lie.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from triton_hf.errors import (
    EXIT_DISK,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    SettingsError,
    StoreError,
    in_short,
)
from triton_hf.models.registry import engine_kind
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec, check_spec
from triton_hf.progress import PROGRESS_SECONDS, Progress
from triton_hf.store.collect import collect_garbage
from triton_hf.store.hub import download_snapshot, resolve_commit, task_of_folder
from triton_hf.store.layout import folder_bytes, marker_path, weights_folder

LOCK_SECONDS = 3600.0
KEPT_GENERATIONS = 3
# How a file system says that it has no locks; some network and object-store volumes have none.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_GENERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
            models = [_with_task(spec, commits, store) for spec in models]
            _publish_repository(models, commits, store, generation)
            _publish_marker(models, commits, store, generation=generation, owner=owner)
            names = ", ".join(spec.name for spec in models)
            progress.say(f"generation {generation} is ready: {names}")
            try:
                collect_garbage(store, progress, owner=owner, keep=keep)
            except OSError as error:  # the generation is published, so the Job has done its work
                progress.say(f"old generations could not be removed: {in_short(error)}")
    except OSError as error:
        raise _disk_error(store, error) from None


def _publish_marker(
    models: list[ModelSpec],
    commits: Mapping[str, str],
    store: Path,
    *,
    generation: str,
    owner: str,
) -> None:
    weights = store / "weights"
    folders = [
        weights_folder(store, spec.repository, commits[spec.name]).relative_to(weights)
        for spec in models
        if spec.repository is not None
    ]
    marker = {
        "generation": generation,
        "owner": owner,
        "models": commits,
        "weights": sorted({str(folder) for folder in folders}),
        "created": int(time.time()),
    }
    _write_atomically(marker_path(store, generation), json.dumps(marker))


def _fetch_all(
    models: list[ModelSpec], store: Path, token: str | None, progress: Progress
) -> dict[str, str]:
    return {
        spec.name: _fetch(spec, store, token, progress)
        for spec in models
        if spec.repository is not None
    }


def _with_task(spec: ModelSpec, commits: Mapping[str, str], store: Path) -> ModelSpec:
    """Return a specification with the task that its repository is for, unless it states one.

    Raises:
        StoreError: The repository cannot serve the task, or its parameters are for another one.
    """
    if spec.repository is None:
        return spec
    folder = weights_folder(store, spec.repository, commits[spec.name])
    loads_all = engine_kind(spec.engine).loads_all
    task = task_of_folder(spec.repository, folder, spec.task, loads_all=loads_all)
    found = dataclasses.replace(spec, task=task)
    try:
        check_spec(found)
    except SettingsError as error:
        raise StoreError(str(error), exit_code=EXIT_USAGE) from None
    return found


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
    with progress.watching(lambda: f"{spec.name}: {folder_bytes(incoming) / 1e6:.0f} MB so far"):
        download_snapshot(
            repo_id=repo_id,
            commit=commit,
            folder=incoming,
            token=token,
            task=spec.task,
            loads_all=engine_kind(spec.engine).loads_all,
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


@contextlib.contextmanager
def _one_at_a_time(store: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of the store.

    Raises:
        StoreError: Another sync held it for `LOCK_SECONDS`.
    """
    # No fallback to a marker file: a killed sync would leave it, and the next one would wait.
    lock = FileLock(store / ".lock", fallback_to_soft=False, preserve_lock_file=True)
    end = time.monotonic() + LOCK_SECONDS
    patience = 0.0  # so that the first line about waiting comes at once
    while True:
        try:
            lock.acquire(timeout=patience, poll_interval=0.5)
            break
        except Timeout:
            if time.monotonic() > end:
                raise StoreError(
                    "another sync held the store's lock for an hour", exit_code=EXIT_TIMEOUT
                ) from None
            progress.say("waiting for another sync on this store")
            patience = PROGRESS_SECONDS
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise StoreError(
                f"the volume at {store} does not support file locks (flock), which keep two syncs "
                "apart; use a storage class that does",
                exit_code=EXIT_DISK,
            ) from None
    try:
        yield
    finally:
        lock.release()


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
