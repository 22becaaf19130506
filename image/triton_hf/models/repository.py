"""Writes and checks the two files of a model: config.pbtxt and 1/model.py.

`python3 -m triton_hf.models.repository add NAME --repository ORG/NAME` adds a model to a folder,
`... check FOLDER` says whether each config.pbtxt is what this module would write.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from triton_hf.errors import TritonHFError
from triton_hf.models.pbtxt import model_config, read_config, string_parameters
from triton_hf.models.registry import DEFAULT_ENGINE, ENGINES, TASKS, kind_of
from triton_hf.models.specification import ModelSpec, all_parameters, check_spec

_MODEL = '''"""{meaning}"""

from {module} import {name} as TritonPythonModel  # noqa: F401
'''


def model_file(path: str, meaning: str) -> str:
    """Return a model.py that serves with a class, `module:Class`; Triton wants three lines."""
    module, _, name = path.partition(":")
    return _MODEL.format(meaning=meaning, module=module, name=name)


def _files(spec: ModelSpec) -> dict[str, str]:
    """The files of a model's folder."""
    parameters = all_parameters(spec)
    return {
        "config.pbtxt": model_config(parameters),
        "1/model.py": model_file(
            kind_of(parameters).task.model, "Serves the model that config.pbtxt names."
        ),
    }


def write_model(repository: Path, spec: ModelSpec) -> Path:
    """Write the two files of a model; return its folder.

    Raises:
        SettingsError: The specification is wrong.
    """
    check_spec(spec)
    folder = repository / spec.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    for name, text in _files(spec).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def read_model(folder: Path) -> ModelSpec:
    """Read a model folder back into its specification.

    Raises:
        SettingsError: Its config.pbtxt cannot be read or says something wrong.
    """
    parameters = string_parameters(read_config(folder / "config.pbtxt"))
    spec = ModelSpec(
        name=folder.name,
        engine=parameters.pop("engine", DEFAULT_ENGINE),
        task=parameters.pop("task", None),
        repository=parameters.pop("repo_id", None),
        revision=parameters.pop("revision", None),
        parameters=parameters,
    )
    check_spec(spec)
    return spec


def differences(folder: Path) -> list[str]:
    """Say in which files a model folder differs from what `write_model` writes.

    Raises:
        SettingsError: Its config.pbtxt cannot be read or says something wrong.
    """
    spec = read_model(folder)
    return [
        f"{folder / name} is not what 'triton_hf.models.repository' writes"
        for name, text in _files(spec).items()
        if (folder / name).read_text("utf-8") != text
    ]


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="triton_hf.models.repository", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="write the two files of a model")
    add.add_argument("name")
    add.add_argument("--into", type=Path, default=Path("model_repository"))
    add.add_argument("--engine", default=DEFAULT_ENGINE, choices=tuple(ENGINES))
    add.add_argument("--task", choices=tuple(TASKS), help="what the model does (text)")
    add.add_argument("--repository", help="ORG/NAME on the Hub")
    add.add_argument("--revision", help="commit, tag or branch; a commit is safest")
    add.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE")
    check = commands.add_parser("check", help="compare a folder of models with what we write")
    check.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "add":
            print(write_model(options.into, _spec(options)))
            return 0
        wrong = [
            line
            for config in sorted(options.folder.glob("*/config.pbtxt"))
            for line in differences(config.parent)
        ]
    except TritonHFError as error:
        print(f"triton_hf.models.repository: {error}", file=sys.stderr)
        return 1
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _spec(options: argparse.Namespace) -> ModelSpec:
    return ModelSpec(
        name=options.name,
        engine=options.engine,
        task=options.task,
        repository=options.repository,
        revision=options.revision,
        parameters=dict(item.split("=", 1) for item in options.set),
    )


if __name__ == "__main__":
    sys.exit(main())
