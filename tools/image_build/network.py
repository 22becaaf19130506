"""Settings of closed networks: what the build is told as secrets."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

from tools.image_build.shell import BuildError, output

# What pip is told of the network; paths of this machine mean nothing in the build.
PIP_SETTINGS = (
    *("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries"),
    *("default-timeout", "find-links", "no-index"),
)


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
