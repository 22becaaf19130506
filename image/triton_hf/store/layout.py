"""Where things lie in the model store, a volume that `sync` fills and servers read.

DIR/weights/ORG--NAME/COMMIT/            files of one model at one commit
DIR/repository/G/M/config.pbtxt, 1/model.py
DIR/repository/G.ready                   marker of generation G, written last (`Marker`)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_hf.errors import EXIT_NOT_FOUND, StoreError
from triton_hf.store.hub import download_to_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marker:
    """What the marker of a generation says.

    Attributes:
        owner: The release whose generation it is; empty if an earlier version wrote it.
        models: The commit of each model that has weights.
        weights: The folders under `DIR/weights` that it needs, as `ORG--NAME/COMMIT`. None if an
            earlier version wrote it: then any folder of one of its commits may be needed.
    """

    owner: str
    models: Mapping[str, str]
    weights: frozenset[str] | None

    def needs(self, folder: str) -> bool:
        """Whether a folder of weights, `ORG--NAME/COMMIT`, may be in use."""
        if self.weights is not None:
            return folder in self.weights
        return folder.rpartition("/")[2] in self.models.values()


def read_marker(path: Path) -> Marker | None:
    """Read a marker; None if it cannot be read or is not one."""
    try:
        document: Any = json.loads(path.read_text("utf-8"))
        models, weights = document["models"], document.get("weights")
        return Marker(
            owner=str(document.get("owner", "")),
            models={str(name): str(commit) for name, commit in models.items()},
            weights=None if weights is None else frozenset(map(str, weights)),
        )
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return None


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


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
