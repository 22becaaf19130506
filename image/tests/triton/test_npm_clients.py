"""OpenAI's API by unmodified clients from npm: `openai`, and the AI SDK of Vercel."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.openai_server import Api, running_api
from lib.triton_client import Client
from tools.place import cache

NPM = Path(__file__).with_name("npm")
pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs node and npm"
)


@pytest.fixture(scope="module")
def scripts() -> Path:
    """A folder in the cache with the scripts and the packages that their lock file names."""
    lock = (NPM / "package-lock.json").read_bytes()
    folder = cache() / f"npm-{hashlib.sha256(lock).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in NPM.iterdir():
        shutil.copy(file, folder)
    if not (folder / "node_modules" / ".package-lock.json").exists():
        words = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def api(simulated: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("npm-api")
    with running_api(grpc_port=simulated.server.ports.grpc, workdir=folder) as running:
        yield running


def run(scripts: Path, name: str, api: Api) -> dict[str, Any]:
    words = ["node", name, api.url]
    done = subprocess.run(
        words, cwd=scripts, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_client_of_openai_for_node_works_unchanged(scripts: Path, api: Api) -> None:
    found = run(scripts, "openai_client.mjs", api)
    assert "quick" in found.pop("models")
    assert found == {
        "whole": "one two three one two",
        "finish": "length",
        "streamed": "one two three one two",
        "tokens": 5,
        "error": {"status": 404, "code": "model_not_found"},
    }


def test_the_ai_sdk_of_vercel_works_unchanged(scripts: Path, api: Api) -> None:
    assert run(scripts, "ai_sdk.mjs", api) == {
        "whole": "one two three one two",
        "finish": "length",
        "streamed": "one two three one two",
        "tokens": 5,
    }
