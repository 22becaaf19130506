"""Builds an image, server or load test: docker where an engine answers, else buildah.

Usage: python3 -m tools.image_build --tag NAME[:TAG] [--target light|full|vllm|load] [--push REF]

Where the default base image cannot be pulled, a base is made first: Debian 12, and for the server
the Triton of the PyPI package nvidia-pytriton in the layout of NVIDIA's image. What did not change
is not built again. Standard library only; progress on stderr, the image's name on stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedded_triton.fetch import TRITON_VERSION
from tools.image_build.bases import ensure_cpu_base, ensure_debian_base
from tools.image_build.engine import Tool
from tools.image_build.network import network_options
from tools.image_build.shell import EXIT_MISSING, LABEL, PROGRESS, BuildError
from tools.place import ROOT

DEFAULT_BASE = "nvcr.io/nvidia/tritonserver:26.07-py3"
LOAD_BASE = "python:3.11-slim-bookworm"
INPUTS = (
    *("Dockerfile", "install-packages", "requirements.txt", "requirements-light.txt"),
    *("triton-hf", "triton_hf", "install-compiler", "triton_native", "triton_openai"),
    *("requirements-vllm-cpu.txt", "requirements-vllm-cuda.txt"),
)
LOAD_INPUTS = ("Dockerfile", "requirements.txt", "locustfile.py", "example", "triton_load")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What tells the server's images from that of the load test.

    Attributes:
        folder: holds the Dockerfile and everything in `inputs`.
        context: folder that the build may read.
        inputs: files and folders that decide what the image holds.
        base: image to build on, unless another is asked for.
        make_base: makes a base where that one cannot be pulled.
        stage: stage of the Dockerfile that is built; empty for the last.
    """

    folder: Path
    context: Path
    inputs: tuple[str, ...]
    base: str
    make_base: Callable[[Tool], str]
    stage: str


def kind_of(target: str) -> Kind:
    """Return how `target` is built."""
    if target == "load":
        folder = ROOT / "load_testing"
        return Kind(
            folder=folder,
            context=folder,
            inputs=LOAD_INPUTS,
            base=LOAD_BASE,
            make_base=ensure_debian_base,
            stage="",
        )
    return Kind(
        folder=ROOT / "image",
        context=ROOT,
        inputs=INPUTS,
        base=DEFAULT_BASE,
        make_base=ensure_cpu_base,
        stage=target,
    )


def inputs_key(target: str, base: str, options: Sequence[str]) -> str:
    """Hash of everything that decides what an image holds."""
    digest = hashlib.sha256(f"{target}\0{base}\0{' '.join(options)}\0".encode())
    kind = kind_of(target)
    for name in kind.inputs:
        top = kind.folder / name
        files = sorted(f for f in top.rglob("*") if f.is_file()) if top.is_dir() else [top]
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(kind.folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def plain_http(reference: str) -> bool:
    """Whether the registry of a reference is one that only speaks plain HTTP: a local one."""
    host = reference.split("/")[0].rsplit(":", 1)[0]
    return host == "localhost" or host.endswith(".local") or host.startswith(("127.", "198.18."))


def build(options: argparse.Namespace) -> str:
    """Build, and push when asked; return the name of the image."""
    tool = Tool()
    PROGRESS.say(f"using {tool.name}")
    kind = kind_of(options.target)
    base, arguments = options.base_image or kind.base, []
    if options.cpu or not _pullable(tool, base):
        if options.base_image:
            raise BuildError(f"{base} cannot be pulled; check its name and the network")
        base = kind.make_base(tool)
        arguments += ["--build-arg", "ACCELERATOR=cpu"] if kind.stage else []
    if options.torch_index:
        arguments += ["--build-arg", f"TORCH_INDEX={options.torch_index}"]
    local = tool.local_name(options.tag)
    key = inputs_key(options.target, base, arguments)
    if tool.label(local) == key:
        PROGRESS.say(f"{options.tag} is up to date")
    else:
        with (
            PROGRESS.step(f"building {options.tag} (target {options.target})"),
            tempfile.TemporaryDirectory(prefix="triton-build-") as folder,
        ):
            secrets = network_options(Path(folder))
            stage = ["--target", kind.stage] if kind.stage else []
            tool.build(
                dockerfile=kind.folder / "Dockerfile",
                context=kind.context,
                image=local,
                base=base,
                options=[*stage, "--label", f"{LABEL}={key}", *arguments, *secrets],
            )
    if options.push:
        with PROGRESS.step(f"pushing {options.push}"):
            insecure = options.plain_http or plain_http(options.push)
            tool.push(local, options.push, plain_http=insecure)
    return local


def triton_version(tag: str) -> str:
    """Return the version of the Triton in an image that was built here.

    Raises:
        BuildError: there is no such image.
    """
    tool = Tool()
    environment = tool.environment(tool.local_name(tag))
    if environment is None:
        raise BuildError(f"there is no image {tag} here", exit_code=EXIT_MISSING)
    # NVIDIA's base says it; the base that is made here carries the version that PyPI has.
    return environment.get("TRITON_SERVER_VERSION", TRITON_VERSION)


def _pullable(tool: Tool, base: str) -> bool:
    with PROGRESS.step(f"looking for the base image {base}"):
        return tool.pull(base)


def main() -> int:
    """Parse the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.image_build", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--target", choices=("light", "full", "vllm", "load"), default="full")
    parser.add_argument("--tag", metavar="NAME[:TAG]")
    parser.add_argument("--base-image", metavar="REF", help=f"default {DEFAULT_BASE}, {LOAD_BASE}")
    parser.add_argument("--cpu", action="store_true", help="make and use the CPU base")
    parser.add_argument("--torch-index", help="package index with CPU builds of torch")
    parser.add_argument("--push", metavar="REF", help="push to this name afterwards")
    parser.add_argument("--plain-http", action="store_true", help="the registry has no TLS")
    parser.add_argument("--json", action="store_true", help="print name and inputs as JSON")
    parser.add_argument(
        "--triton-version",
        action="store_true",
        help="print the version in the image, build nothing",
    )
    parser.add_argument(
        "--remove-all", action="store_true", help="remove every image that was built here"
    )
    options = parser.parse_args()
    if not options.tag and not options.remove_all:
        parser.error("--tag is needed")
    try:
        if options.remove_all:
            PROGRESS.say(f"{Tool().remove_labelled()} images removed")
            return 0
        if options.triton_version:
            print(triton_version(options.tag))
            return 0
        image = build(options)
    except BuildError as error:
        print(f"image: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("image: stopped", file=sys.stderr)
        return 130
    print(json.dumps({"image": image, "pushed": options.push}) if options.json else image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
