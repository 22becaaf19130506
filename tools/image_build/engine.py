"""What builds and pushes: docker where its engine answers, else buildah."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tools.image_build.shell import EXIT_MISSING, LABEL, BuildError, output, run


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

    def build(
        self, *, dockerfile: Path, context: Path, image: str, base: str, options: list[str]
    ) -> None:
        """Build an image from what a context folder holds."""
        command = [self.name, "build"]
        if self.name == "buildah":
            command += ["--isolation", "chroot", "--layers", "--format", "docker"]
            command += ["--pull-never" if base.startswith("localhost/") else "--pull"]
        command += ["--file", str(dockerfile), "--tag", image]
        command += ["--build-arg", f"BASE_IMAGE={base}", *options]
        os.environ.setdefault("DOCKER_BUILDKIT", "1")  # engines before 23 do not by themselves
        run([*command, str(context)], what=f"building {image}")

    def push(self, image: str, reference: str, *, plain_http: bool) -> None:
        """Push an image to a registry."""
        if self.name == "docker":
            run(["docker", "tag", image, reference], what="tagging")
            run(["docker", "push", "--quiet", reference], what=f"pushing {reference}")
            return
        command = ["buildah", "push", "--quiet", f"--tls-verify={str(not plain_http).lower()}"]
        run([*command, image, f"docker://{reference}"], what=f"pushing {reference}")
