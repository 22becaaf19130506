#!/usr/bin/env python3
"""Builds an image, server or load test: docker where an engine answers, else buildah.

Where the default base image cannot be pulled, a base is made first: Debian 12, and for the server
the Triton of the PyPI package nvidia-pytriton in the layout of NVIDIA's image. What did not change
is not built again. Standard library only; progress on stderr, the image's name on stdout.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from embedded_triton.server import TRITON_VERSION, EmbeddedError, ensure_wheel, unpack  # noqa: E402
from triton_hf.runtime import cache_root  # noqa: E402

DEFAULT_BASE = "nvcr.io/nvidia/tritonserver:26.07-py3"
LOAD_BASE = "python:3.11-slim-bookworm"
INPUTS = ("Dockerfile", "install-packages", "requirements.txt", "requirements-light.txt")
INPUTS += ("triton-hf", "triton_hf", "install-compiler", "triton_native", "triton_openai")
LOAD_INPUTS = ("Dockerfile", "requirements.txt", "locustfile.py", "example", "triton_load")
LABEL = "io.triton-hf.inputs"
BASE_PACKAGES = "python3,python3-pip,libpython3.11,ca-certificates"
BASE_RECIPE = "3"  # raise it when what `make_cpu_base` writes changes
SILENCE_SECONDS = 8
EXIT_FAILED = 1
EXIT_MISSING = 2
START = time.monotonic()


class BuildError(Exception):
    """The image could not be built; the text says why and what to do."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        """Keep the sentence and the exit status."""
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"image: {time.monotonic() - START:6.1f} s  {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Name a step; while it is silent, say now and then that it goes on."""
    start = time.monotonic()
    say(name)
    done = threading.Event()

    def report() -> None:
        while not done.wait(SILENCE_SECONDS):
            say(f"{name} ... {time.monotonic() - start:.0f} s")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(command: Sequence[str], *, what: str, cwd: Path | None = None) -> None:
    """Run a command; on failure raise with the end of its output."""
    result = subprocess.run(
        command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        tail = "\n".join(result.stdout.strip().splitlines()[-25:])
        raise BuildError(f"{what} failed ({' '.join(command[:3])} ...):\n{tail}")


def output(command: Sequence[str]) -> str | None:
    """Output of a command that succeeded, else None."""
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


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
        folder=HERE,
        context=ROOT,
        inputs=INPUTS,
        base=DEFAULT_BASE,
        make_base=ensure_cpu_base,
        stage=target,
    )


class Tool:
    """docker or buildah."""

    def __init__(self) -> None:
        """Choose: docker when its engine answers, else buildah.

        Raises:
            BuildError: Neither can be used.
        """
        self.name = "docker"
        if output(["docker", "info", "--format", "{{.ServerVersion}}"]):
            return
        self.name = "buildah"
        if shutil.which("buildah") is None:
            raise BuildError(
                "no Docker engine answers and buildah is missing: start Docker, or run "
                "'apt-get install buildah debootstrap' (as root)",
                exit_code=EXIT_MISSING,
            )
        if os.geteuid() != 0:
            raise BuildError("buildah builds as root here: run with sudo", exit_code=EXIT_MISSING)

    def label(self, image: str) -> str | None:
        """Hash of the inputs that an image was built from, None when there is no such image."""
        if self.name == "docker":
            form = f'{{{{index .Config.Labels "{LABEL}"}}}}'
            return output(["docker", "image", "inspect", "--format", form, image])
        form = f'{{{{index .OCIv1.Config.Labels "{LABEL}"}}}}'
        return output(["buildah", "inspect", "--type", "image", "--format", form, image])

    def environment(self, image: str) -> dict[str, str] | None:
        """Environment variables that an image sets, None when there is no such image."""
        kind = [] if self.name == "buildah" else ["image"]
        typed = ["--type", "image"] if self.name == "buildah" else []
        text = output([self.name, *kind, "inspect", *typed, image])
        if text is None:
            return None
        found = json.loads(text)
        config = found["OCIv1"]["config"] if self.name == "buildah" else found[0]["Config"]
        return dict(line.split("=", 1) for line in config.get("Env") or ())

    def local_name(self, image: str) -> str:
        """Full name of an image that was built here."""
        image = image if ":" in image.rsplit("/", 1)[-1] else f"{image}:latest"
        return image if self.name == "docker" or "/" in image else f"localhost/{image}"

    def remove_labelled(self) -> int:
        """Remove all images that were built or made here; return how many."""
        listing = [self.name, "images", "--quiet", "--filter", f"label={LABEL}"]
        ids = list(dict.fromkeys((output(listing) or "").split()))
        if ids:
            remove = ["rmi"] if self.name == "buildah" else ["image", "rm"]
            run([self.name, *remove, "--force", *ids], what="removing images")
        return len(ids)

    def pull(self, image: str) -> bool:
        """Whether an image is here or can be pulled."""
        if self.label(image) is not None:
            return True
        return output([self.name, "pull", "--quiet", image]) is not None

    def import_root(self, root: Path, image: str, key: str) -> None:
        """Make an image of one layer from a root folder."""
        if self.name == "docker":
            with subprocess.Popen(
                ["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE
            ) as tar:
                command = ["docker", "import", "--change", f"LABEL {LABEL}={key}", "-", image]
                subprocess.run(command, stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)
            return
        container = output(["buildah", "from", "scratch"])
        if container is None:
            raise BuildError(
                "buildah cannot make a container; run 'buildah from scratch' to see why"
            )
        try:
            run(["buildah", "add", "--quiet", container, str(root), "/"], what="adding the base")
            run(["buildah", "config", "--label", f"{LABEL}={key}", container], what="labelling")
            run(["buildah", "commit", "--quiet", container, image], what="committing the base")
        finally:
            output(["buildah", "rm", container])

    def build(self, *, kind: Kind, image: str, base: str, key: str, options: list[str]) -> None:
        """Build an image of one kind."""
        command = [self.name, "build"]
        if self.name == "buildah":
            command += ["--isolation", "chroot", "--layers", "--format", "docker"]
            command += ["--pull-never" if base.startswith("localhost/") else "--pull"]
        command += ["--file", str(kind.folder / "Dockerfile"), "--tag", image]
        command += ["--target", kind.stage] if kind.stage else []
        command += ["--build-arg", f"BASE_IMAGE={base}", "--label", f"{LABEL}={key}", *options]
        run([*command, str(kind.context)], what=f"building {image}")

    def push(self, image: str, reference: str, *, plain_http: bool) -> None:
        """Push an image to a registry."""
        if self.name == "docker":
            run(["docker", "tag", image, reference], what="tagging")
            run(["docker", "push", "--quiet", reference], what=f"pushing {reference}")
            return
        command = ["buildah", "push", "--quiet", f"--tls-verify={str(not plain_http).lower()}"]
        run([*command, image, f"docker://{reference}"], what=f"pushing {reference}")


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


# The bases that are made here.


def ensure_cpu_base(tool: Tool) -> str:
    """Return the name of the server's CPU base; make it the first time.

    Raises:
        BuildError: A tool is missing or a download fails.
    """
    key = hashlib.sha256(f"{BASE_RECIPE} {BASE_PACKAGES} {TRITON_VERSION}".encode()).hexdigest()
    return ensure_base(tool, f"triton-hf-base:{key[:12]}", make_cpu_base)


def ensure_debian_base(tool: Tool) -> str:
    """Return the name of a base with Debian 12 and its Python; make it the first time.

    Raises:
        BuildError: A tool is missing or a download fails.
    """
    key = hashlib.sha256(f"{BASE_RECIPE} {BASE_PACKAGES}".encode()).hexdigest()
    return ensure_base(tool, f"triton-load-base:{key[:12]}", make_debian_base)


def ensure_base(tool: Tool, name: str, make: Callable[[Path], None]) -> str:
    """Return the full name of a base image; where it is missing `make` fills its root folder.

    Raises:
        BuildError: A tool is missing or a download fails.
    """
    image, key = f"localhost/{name}", name.rsplit(":", 1)[-1]
    if tool.label(image) == key:
        say(f"base {image} is there")
        return image
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BuildError(
            "the default base image cannot be pulled, and making one needs root and debootstrap: "
            "run 'apt-get install debootstrap' and start again as root",
            exit_code=EXIT_MISSING,
        )
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=cache) as folder:
        root = Path(folder) / "root"
        make(root)
        with step("making it the base image"):
            tool.import_root(root, image, key)
    return image


def make_cpu_base(root: Path) -> None:
    """Write Debian 12, Python 3.11 and Triton in NVIDIA's layout into a folder."""
    make_debian_base(root)
    with step(f"CPU base: Triton {TRITON_VERSION}"):
        unpacked = root / "opt/unpacked"
        try:
            unpack(ensure_wheel(), unpacked, python_minor="3.11")
        except EmbeddedError as error:
            raise BuildError(str(error)) from None
        server = root / "opt/tritonserver"
        (unpacked / "pytriton/tritonserver").rename(server)
        (unpacked / "nvidia_pytriton.libs").rename(server / "lib")
        shutil.rmtree(unpacked)
        loader = root / "etc/ld.so.conf.d/tritonserver.conf"
        loader.write_text("/opt/tritonserver/lib\n", encoding="utf-8")
        run(["chroot", str(root), "ldconfig"], what="ldconfig")


def make_debian_base(root: Path) -> None:
    """Write Debian 12 and Python 3.11 with the user 10001 into a folder."""
    with step("base: Debian 12 (debootstrap)"):
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm"]
        run([*command, str(root), debian_mirror()], what="debootstrap")
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(root / waste, ignore_errors=True)
        (root / waste).mkdir(parents=True, exist_ok=True)
    for device in (root / "dev").iterdir():
        if device.is_dir() and not device.is_symlink():
            shutil.rmtree(device)
        else:
            device.unlink()
    passwd = root / "etc/passwd"
    passwd.write_text(
        passwd.read_text("utf-8") + "triton:x:10001:10001::/tmp:/usr/sbin/nologin\n", "utf-8"
    )


def debian_mirror() -> str:
    """The mirror that this machine uses itself, else Debian's."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for file in files:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in file.read_text("utf-8").splitlines():
                words = line.split()
                if words[:1] in (["deb"], ["URIs:"]):
                    found = [word for word in words if word.startswith(("http://", "https://"))]
                    if found and "/debian" in found[0] and "security" not in found[0]:
                        return found[0]
    return "http://deb.debian.org/debian"


# Settings of closed networks.


# What pip is told of the network; paths of this machine mean nothing in the build.
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
PIP_SETTINGS += ("default-timeout", "find-links", "no-index")


def network_options(folder: Path) -> list[str]:
    """Secrets for the build: CA bundle, pip's and apt's settings of this machine, if it has any.

    Args:
        folder: Where the files of the secrets are written; they may hold passwords.
    """
    settings = pip_settings()
    options = []
    if bundle := _ca_bundle(settings):
        options += ["--secret", f"id=ca.pem,src={bundle}"]
    network = configparser.RawConfigParser()
    for section in settings.sections():
        for name, value in settings.items(section):
            if name in PIP_SETTINGS and not value.startswith(("/", ".", "~")):
                network.read_dict({section: {name: value}})
    if network.sections():
        file = folder / "pip.conf"
        with file.open("w", encoding="utf-8") as written:
            network.write(written)
        options += ["--secret", f"id=pip.conf,src={file}"]
    if lines := apt_settings():
        file = folder / "apt.conf"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        options += ["--secret", f"id=apt.conf,src={file}"]
    return options


def pip_settings() -> configparser.RawConfigParser:
    """What pip would read here: its files, and over them the PIP_* variables.

    Raises:
        BuildError: A file of its settings cannot be read.
    """
    settings = configparser.RawConfigParser()
    try:
        settings.read(pip_files(), encoding="utf-8")
    except configparser.Error as error:
        raise BuildError(f"pip's settings cannot be read: {error}") from None
    for name in (*PIP_SETTINGS, "cert"):
        value = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
        if not value:
            continue
        for section in settings.sections():  # a variable wins over every section
            settings.remove_option(section, name)
        settings.read_dict({"global": {name: value}})
    return settings


def pip_files() -> list[Path]:
    """The files that pip may read here; a later one counts more."""
    home = Path.home()
    files = [Path("/etc/pip.conf"), home / ".pip/pip.conf", home / ".config/pip/pip.conf"]
    named = os.environ.get("PIP_CONFIG_FILE")
    return [*files, Path(named)] if named else files


def apt_settings() -> list[str]:
    """Lines of apt's settings here that say how http and https are spoken, proxies above all."""
    dump = output(["apt-config", "dump"]) or ""
    spoken = re.compile(r'Acquire::https?::\S+ ".+";')
    return [line for line in dump.splitlines() if spoken.fullmatch(line)]


def _ca_bundle(settings: configparser.RawConfigParser) -> Path | None:
    named = [settings.get(section, "cert", fallback="") for section in settings.sections()]
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    named += [os.environ.get(name, "") for name in names]
    return next((Path(file) for file in named if file and Path(file).is_file()), None)


def plain_http(reference: str) -> bool:
    """Whether the registry of a reference is one that only speaks plain HTTP: a local one."""
    host = reference.split("/")[0].rsplit(":", 1)[0]
    return host == "localhost" or host.endswith(".local") or host.startswith(("127.", "198.18."))


def build(options: argparse.Namespace) -> str:
    """Build, and push when asked; return the name of the image."""
    tool = Tool()
    say(f"using {tool.name}")
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
        say(f"{options.tag} is up to date")
    else:
        with (
            step(f"building {options.tag} (target {options.target})"),
            tempfile.TemporaryDirectory(prefix="triton-build-") as folder,
        ):
            secrets = network_options(Path(folder))
            tool.build(
                kind=kind,
                image=local,
                base=base,
                key=key,
                options=[*arguments, *secrets],
            )
    if options.push:
        with step(f"pushing {options.push}"):
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
    with step(f"looking for the base image {base}"):
        return tool.pull(base)


def main() -> int:
    """Parse the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=("light", "full", "load"), default="full")
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
            say(f"{Tool().remove_labelled()} images removed")
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
