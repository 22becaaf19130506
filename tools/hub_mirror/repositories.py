"""The two repositories of the mirror: one open, one gated, both with the demo model."""

from __future__ import annotations

from pathlib import Path

from tools.demo_model import REPOSITORY, ensure_smollm2

GATED_REPOSITORY = "example/gated-smollm2"
# Not a secret: it opens nothing but this mirror.
GATED_TOKEN = "hf_test_token_open_sesame"  # noqa: S105


def populate(root: Path) -> str:
    """Fill a root folder; return the commit of both repositories. Safe to call again."""
    model = ensure_smollm2()
    for name, token in ((REPOSITORY, None), (GATED_REPOSITORY, GATED_TOKEN)):
        add_repository(root, name, model.folder, revision=model.revision, token=token)
    return model.revision


def add_repository(
    root: Path, name: str, files: Path, *, revision: str, token: str | None = None
) -> None:
    """Add a repository with the files of a folder, which is linked and not copied."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "files"
    link.unlink(missing_ok=True)
    link.symlink_to(files.resolve(), target_is_directory=True)
    if token is not None:
        (folder / "token").write_text(f"{token}\n", encoding="utf-8")
    (folder / "revision").write_text(f"{revision}\n", encoding="utf-8")
