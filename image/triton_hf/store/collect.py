"""Removes what no generation of the store needs any more, judged by the markers alone.

A release on the same claim may run another version of this code, so its config.pbtxt files mean
nothing here. What cannot be read is kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from triton_hf.progress import Progress
from triton_hf.store.layout import read_marker


def collect_garbage(store: Path, progress: Progress, *, owner: str, keep: int) -> None:
    """Remove an owner's oldest generations, then weights that no generation needs.

    Args:
        store: Folder of the store; the caller holds its lock.
        progress: Where to say what goes.
        owner: The release whose generations may go; generations without an owner may go, too.
        keep: How many of them stay.

    Raises:
        OSError: The store failed.
    """
    root = store / "repository"
    own = [
        path
        for path in _markers(root)
        if (marker := read_marker(path)) and marker.owner in ("", owner)
    ]
    for path in own[keep:]:
        path.unlink()
    kept = {path.name.removesuffix(".ready") for path in _markers(root)}
    for folder in root.iterdir():
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    _collect_weights(store, progress)
    for folder in (store / "incoming").iterdir():
        shutil.rmtree(folder, ignore_errors=True)


def _markers(root: Path) -> list[Path]:
    """The markers, newest first."""
    return sorted(root.glob("*.ready"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _collect_weights(store: Path, progress: Progress) -> None:
    markers = []
    for path in _markers(store / "repository"):
        marker = read_marker(path)
        if marker is None:
            progress.say(f"no weights are removed, because {path.name} cannot be read")
            return
        markers.append(marker)
    for folder in (store / "weights").glob("*/*"):
        name = f"{folder.parent.name}/{folder.name}"
        if not any(marker.needs(name) for marker in markers):
            progress.say(f"removing {folder.parent.name} at {folder.name[:12]}: no longer used")
            shutil.rmtree(folder, ignore_errors=True)
