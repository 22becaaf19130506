"""Downloads from the Hub, with each failure as one sentence that says what to do."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from triton_hf.errors import (
    EXIT_ACCESS,
    EXIT_FAILED,
    EXIT_HUB,
    EXIT_NOT_FOUND,
    SettingsError,
    StoreError,
)
from triton_hf.models.files import (
    INDEX,
    json_reader,
    module_weights,
    refusal,
    small_files,
    weight_files,
)
from triton_hf.models.sentence import MODULES, Read
from triton_hf.models.tasks import find_task

# Read by huggingface_hub when it is imported: logs are lines, not bars.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_SMALL_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_Result = TypeVar("_Result")


def resolve_commit(*, repo_id: str, revision: str | None, token: str | None) -> str:
    """Return the commit that a revision (None: the main branch) stands for now.

    Raises:
        StoreError: There is no such repository or revision, or no access to it.
    """
    from huggingface_hub import HfApi

    def ask() -> str:
        info = HfApi().model_info(repo_id, revision=revision, token=token or False)
        return str(info.sha)

    with _sentences(repo_id, revision, token):
        return _with_retries(ask)


def download_snapshot(
    *,
    repo_id: str,
    commit: str,
    folder: Path,
    token: str | None,
    task: str | None = None,
    loads_all: bool = False,
) -> None:
    """Download what a load reads of a commit into a folder; goes on where an earlier run stopped.

    The small files come first. If they show that the model cannot be served, no weight follows.

    Args:
        repo_id: The repository.
        commit: Of it.
        folder: Where the files go.
        token: For the Hub.
        task: Name of the task; None to serve the one that the repository is for.
        loads_all: Whether the engine has that property (`models.registry.EngineKind`).

    Raises:
        StoreError: There is no such repository or commit, no access, the repository cannot be
            served, or the Hub fails.
        OSError: The disk is full or not writable.
    """
    from huggingface_hub import HfApi, snapshot_download

    def listed() -> list[str]:
        info = HfApi().model_info(repo_id, revision=commit, token=token or False)
        return [file.rfilename for file in info.siblings or ()]

    def download(names: Sequence[str]) -> None:
        snapshot_download(
            repo_id,
            revision=commit,
            local_dir=folder,
            token=token or False,
            allow_patterns=[glob.escape(name) for name in names],
            max_workers=4,
        )

    with _sentences(repo_id, commit, token):
        names = _with_retries(listed)
        small = small_files(names)
        _with_retries(lambda: download(small))
        weights = _checked_weights(repo_id, folder, names, task, loads_all)
        _with_retries(lambda: download(weights))


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
    read = _reader(repo_id, folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return _checked_task(repo_id, names, read, task, loads_all)


def _checked_task(
    repo_id: str, names: Sequence[str], read: Read, task: str | None, loads_all: bool
) -> str:
    task = task or find_task(read)
    if (why := refusal(names, read=read, task=task, loads_all=loads_all)) is not None:
        raise StoreError(f"{repo_id} {why}", exit_code=EXIT_NOT_FOUND)
    return task


def _checked_weights(
    repo_id: str, folder: Path, names: Sequence[str], task: str | None, loads_all: bool
) -> list[str]:
    """Return the files of weights to load, judged by the small files in a folder.

    Raises:
        StoreError: The repository cannot be served.
    """
    read = _reader(repo_id, folder)
    _checked_task(repo_id, names, read, task, loads_all)
    weights = weight_files(names, _index(read)) + _module_weights(repo_id, read)
    if missing := sorted(set(weights) - set(names)):
        text = (
            f"{repo_id} lacks {missing[0]}, which {MODULES if '/' in missing[0] else INDEX} names"
        )
        raise StoreError(text, exit_code=EXIT_NOT_FOUND)
    return weights


def _reader(repo_id: str, folder: Path) -> Read:
    """Read the JSON files of a folder; raises StoreError for one that is none."""
    inner = json_reader(folder)

    def read(name: str) -> Any:
        try:
            return inner(name)
        except ValueError as error:
            text = f"{repo_id} has a {name} that is not JSON: {str(error).partition(': ')[2]}"
            raise StoreError(text, exit_code=EXIT_NOT_FOUND) from None

    return read


def _index(read: Read) -> dict[str, Any] | None:
    found = read(INDEX)
    return found if isinstance(found, dict) else None


def _module_weights(repo_id: str, read: Read) -> list[str]:
    try:
        return module_weights(read(MODULES))
    except SettingsError as error:
        raise StoreError(f"{repo_id} cannot be served: {error}", exit_code=EXIT_NOT_FOUND) from None


def download_to_cache(*, repo_id: str, revision: str | None) -> Path:
    """Return a snapshot in the Hub's own cache, downloaded when it may be.

    Raises:
        StoreError: It is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    token = read_token()

    def download(patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token or False,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        )

    with _sentences(repo_id, revision, token):
        folder = _with_retries(lambda: download(_SMALL_PATTERNS))
        read = _reader(repo_id, folder)
        if modules := _module_weights(repo_id, read):
            _with_retries(lambda: download([glob.escape(name) for name in modules]))
        index = _index(read)
        wanted = weight_files([], index) if index else []
        if wanted:
            return _with_retries(lambda: download([glob.escape(name) for name in wanted]))
        return _with_retries(lambda: download(["*.safetensors"], ["*/*", "consolidated*"]))


def read_token() -> str | None:
    """The Hub token: from the file `HF_TOKEN_PATH`, else from `HF_TOKEN`, else None.

    Raises:
        StoreError: `HF_TOKEN_PATH` names a file that cannot be read, or what it holds is no token.
    """
    if path := os.environ.get("HF_TOKEN_PATH"):
        try:
            return _one_word(Path(path).read_text("utf-8"), f"the token file {path}")
        except FileNotFoundError:
            pass  # an optional Secret that is not there
        except (OSError, UnicodeDecodeError):
            raise StoreError(
                f"the token file {path} cannot be read", exit_code=EXIT_ACCESS
            ) from None
    return _one_word(os.environ.get("HF_TOKEN", ""), "HF_TOKEN")


def _one_word(text: str, where: str) -> str | None:
    """Return a token, None when there is none; other text must not get into a header or a log."""
    token = text.strip()
    if not re.fullmatch(r"[!#-&(-~]*", token):
        raise StoreError(
            f"{where} holds more than a token: it must be one word without quotes or spaces",
            exit_code=EXIT_ACCESS,
        )
    return token or None


def _with_retries(action: Callable[[], _Result]) -> _Result:
    """Call an action again after failures that may pass: 429, 5xx, broken connections."""
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if attempt == ATTEMPTS or not _may_pass(error):
                raise
            time.sleep(_retry_after(error) or pause)
            pause *= 2
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    import httpx2

    causes = _causes(error)
    status = _status(causes)
    if status is not None:
        return status == 429 or status >= 500
    # A file that is shorter than announced is reported as a plain OSError.
    short = any(isinstance(item, OSError) and "onsistency" in str(item) for item in causes)
    return short or any(isinstance(item, httpx2.TransportError) for item in causes)


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    try:
        return min(30.0, float(response.headers["Retry-After"])) if response is not None else None
    except (KeyError, ValueError):
        return None


def _status(causes: Sequence[BaseException]) -> int | None:
    """HTTP status of the first error of a chain that has one."""
    for error in causes:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """An error and the ones that it was raised from, the outermost first."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


@contextlib.contextmanager
def _sentences(repo_id: str, revision: str | None, token: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into ours."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise _translated(error, repo_id, revision, token) from None


def _translated(
    error: Exception, repo_id: str, revision: str | None, token: str | None
) -> Exception:
    from huggingface_hub import errors

    causes = _causes(error)
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")

    def of(kind: type[Any]) -> bool:
        return any(isinstance(item, kind) for item in causes)

    status = _status(causes)
    for item in causes:
        if isinstance(item, OSError) and item.errno in _DISK_ERRORS:
            return item
    if of(errors.RevisionNotFoundError):
        short = re.fullmatch(r"[0-9a-f]{6,39}", revision or "") is not None
        cure = "a commit has 40 characters, write it in full" if short else "check 'revision'"
        text = f"{repo_id} has no revision '{revision}'; {cure}"
        return StoreError(text, exit_code=EXIT_NOT_FOUND)
    if status == 401 and token:
        text = f"the Hub does not accept the token for {repo_id}: it is wrong, expired or revoked"
        return StoreError(text, exit_code=EXIT_ACCESS)
    if of(errors.GatedRepoError) or status in (401, 403):
        return _access_error(repo_id, endpoint, token)
    if of(errors.RepositoryNotFoundError) or status == 404:
        text = f"there is no repository {repo_id} on {endpoint}, or the token may not see it"
        return StoreError(text, exit_code=EXIT_NOT_FOUND)
    if of(errors.OfflineModeIsEnabled) or (os.environ.get("HF_HUB_OFFLINE") == "1"):
        text = f"{repo_id} is not on this machine and HF_HUB_OFFLINE=1 forbids to download it"
        return StoreError(text, exit_code=EXIT_NOT_FOUND)
    lines = str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__]
    detail = _plain(lines[0], token)
    if status is not None or _may_pass(error) or of(errors.LocalEntryNotFoundError):
        text = f"the Hub at {endpoint} failed {ATTEMPTS} times for {repo_id}: {detail}"
        return StoreError(text, exit_code=EXIT_HUB)
    text = f"{repo_id} could not be downloaded: {type(causes[-1]).__name__}: {detail}"
    return StoreError(text, exit_code=EXIT_FAILED)


def _access_error(repo_id: str, endpoint: str, token: str | None) -> StoreError:
    if token is None:
        text = f"{repo_id} is gated and there is no token: set one that has been granted access"
    else:
        text = (
            f"{repo_id} is gated and this token has no access: ask for it on "
            f"{endpoint}/{repo_id}, then run again"
        )
    return StoreError(text, exit_code=EXIT_ACCESS)


def _plain(text: str, token: str | None) -> str:
    """One line without a full stop at its end, and never a token."""
    if token:
        text = text.replace(token, "***")
    return " ".join(re.sub(r"\bhf_\w{6,}", "hf_***", text).split()).rstrip(".")
