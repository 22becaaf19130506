"""What a repository holds, judged by its small files before a weight is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_hf.errors import EXIT_NOT_FOUND, SettingsError, StoreError
from triton_hf.models.files import INDEX, json_reader, module_weights, refusal, weight_files
from triton_hf.models.sentence import MODULES, Read
from triton_hf.models.tasks import find_task


def task_of_folder(repo_id: str, folder: Path, task: str | None, *, loads_all: bool = False) -> str:
    """Return the name of the task that a downloaded repository serves.

    Args:
        repo_id: The repository.
        folder: Its files.
        task: What is wanted; None for what it is for.
        loads_all: Whether the engine has that property (`models.registry.EngineKind`).

    Raises:
        StoreError: It cannot serve that.
    """
    read = json_of(repo_id, folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return _checked_task(repo_id, names, read, task, loads_all)


def _checked_task(
    repo_id: str, names: Sequence[str], read: Read, task: str | None, loads_all: bool
) -> str:
    task = task or find_task(read)
    if (why := refusal(names, read=read, task=task, loads_all=loads_all)) is not None:
        raise StoreError(f"{repo_id} {why}", exit_code=EXIT_NOT_FOUND)
    return task


def checked_weights(
    repo_id: str, folder: Path, names: Sequence[str], task: str | None, loads_all: bool
) -> list[str]:
    """Return the files of weights to load, judged by the small files in a folder.

    Raises:
        StoreError: The repository cannot be served.
    """
    read = json_of(repo_id, folder)
    _checked_task(repo_id, names, read, task, loads_all)
    weights = weight_files(names, index_of(read)) + module_files(repo_id, read)
    if missing := sorted(set(weights) - set(names)):
        text = (
            f"{repo_id} lacks {missing[0]}, which {MODULES if '/' in missing[0] else INDEX} names"
        )
        raise StoreError(text, exit_code=EXIT_NOT_FOUND)
    return weights


def json_of(repo_id: str, folder: Path) -> Read:
    """Return a function that reads the JSON files of a folder.

    It raises StoreError for a file that is no JSON.
    """
    inner = json_reader(folder)

    def read(name: str) -> Any:
        try:
            return inner(name)
        except ValueError as error:
            text = f"{repo_id} has a {name} that is not JSON: {str(error).partition(': ')[2]}"
            raise StoreError(text, exit_code=EXIT_NOT_FOUND) from None

    return read


def index_of(read: Read) -> dict[str, Any] | None:
    """Return the index of the weights; None if there is none."""
    found = read(INDEX)
    return found if isinstance(found, dict) else None


def module_files(repo_id: str, read: Read) -> list[str]:
    """Return the weights of the modules of sentence-transformers.

    Raises:
        StoreError: modules.json is not what sentence-transformers writes.
    """
    try:
        return module_weights(read(MODULES))
    except SettingsError as error:
        raise StoreError(f"{repo_id} cannot be served: {error}", exit_code=EXIT_NOT_FOUND) from None
