"""What the files of sentence-transformers say about an embedding model or a cross encoder.

modules.json names the steps after the transformer, `1_Pooling/config.json` how tokens become one
vector, config_sentence_transformers.json the prompts. They mean what they
mean in sentence-transformers 6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triton_hf.errors import SettingsError

MODULES = "modules.json"
ABOUT = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# How older files say the same, in the order in which several modes are put together.
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Softmax")
_KNOWN = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")

Read = Callable[[str], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer after pooling; its weights are in `path`/model.safetensors."""

    path: str
    activation: str
    residual: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceModel:
    """How token embeddings become the embedding of a text.

    Attributes:
        pooling: The modes, which are put together in this order.
        pools_prompt: Whether the tokens of the prompt count.
        dense: The linear layers after pooling.
        normalizes: Whether the embedding has length 1.
        prompts: The prompts by name.
        default_prompt: Name of the prompt of a request that names none.
        max_tokens: Longest text, None if the files do not say.
        lowers: Whether texts are turned into lower case first.
        dimensions: Matryoshka dimensions, empty if any number is one; None if there are none.
    """

    pooling: tuple[str, ...] = ("mean",)
    pools_prompt: bool = True
    dense: tuple[Dense, ...] = ()
    normalizes: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None
    max_tokens: int | None = None
    lowers: bool = False
    dimensions: tuple[int, ...] | None = None


def module_kinds(modules: Any) -> list[tuple[str, str]]:
    """Return kind and path of each step of modules.json, in their order.

    Raises:
        SettingsError: It is not what sentence-transformers writes.
    """
    try:
        steps = sorted(modules, key=lambda step: int(step["idx"]))
        return [(str(step["type"]).rpartition(".")[2], str(step["path"])) for step in steps]
    except (TypeError, KeyError, ValueError):
        raise SettingsError(f"{MODULES} is not a list of modules") from None


def read_sentence_model(read: Read) -> SentenceModel:
    """Read the files of an embedding model; without them its tokens are averaged.

    Args:
        read: Returns the content of a JSON file by its path, None if there is none.

    Raises:
        SettingsError: A file asks for something that is not served; the text names it.
    """
    modules = read(MODULES)
    steps = [("Transformer", ""), ("Pooling", "")] if modules is None else module_kinds(modules)
    _check_steps(steps)
    config, about, text = (_object(read, name) for name in ("config.json", ABOUT, TRANSFORMER))
    pooling_path = next(path for kind, path in steps if kind == "Pooling")
    pooling = _object(read, f"{pooling_path}/config.json") if pooling_path else {}
    prompts = about.get("prompts") or {}
    return SentenceModel(
        pooling=_modes(pooling),
        pools_prompt=pooling.get("include_prompt") is not False,
        dense=tuple(_dense(read, path) for kind, path in steps if kind == "Dense"),
        normalizes=any(kind == "Normalize" for kind, _ in steps),
        prompts={str(name): str(prompt or "") for name, prompt in prompts.items()},
        default_prompt=about.get("default_prompt_name"),
        max_tokens=_whole(text.get("max_seq_length")),
        lowers=text.get("do_lower_case") is True,
        dimensions=_matryoshka(config, about),
    )


def _check_steps(steps: Sequence[tuple[str, str]]) -> None:
    kinds = [kind for kind, _ in steps]
    for kind in kinds:
        if kind not in _KNOWN:
            raise SettingsError(
                f"{MODULES} has a module '{kind:.60}'; this server computes {', '.join(_KNOWN)}"
            )
    if kinds[:1] != ["Transformer"] or kinds.count("Transformer") > 1 or "Pooling" not in kinds:
        raise SettingsError(f"{MODULES} must begin with one Transformer and have a Pooling")
    if steps[0][1]:
        raise SettingsError(
            f"{MODULES} puts the transformer into '{steps[0][1]:.60}', not the root"
        )
    last = [kind for kind in kinds if kind != "Dropout"]
    if "Normalize" in last[:-1]:
        raise SettingsError(f"{MODULES} has a module after Normalize, which is not served")


def _modes(pooling: Mapping[str, Any]) -> tuple[str, ...]:
    given = pooling.get("pooling_mode")
    if given is None:
        given = [mode for key, mode in _OLD_MODES.items() if pooling.get(key)] or ["mean"]
    modes = tuple([given] if isinstance(given, str) else given)
    for mode in modes:
        if mode not in POOLING_MODES:
            raise SettingsError(
                f"the pooling mode is '{mode!s:.60}'; this server computes "
                f"{', '.join(POOLING_MODES)}"
            )
    return modes


def _dense(read: Read, path: str) -> Dense:
    config = _object(read, f"{path}/config.json")
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise SettingsError(f"{path} works on '{config[name]}', not on the embedding")
    return Dense(
        path=path,
        activation=activation_name(config.get("activation_function") or "Identity"),
        residual=config.get("use_residual") is True,
    )


def activation_name(path: Any) -> str:
    """Return which of `ACTIVATIONS` a class of torch is, given as `torch.nn...`.

    Raises:
        SettingsError: It is none of them.
    """
    name = str(path).rpartition(".")[2].removesuffix("()")
    if name not in ACTIVATIONS:
        raise SettingsError(
            f"the activation is '{name:.60}'; this server computes {', '.join(ACTIVATIONS)}"
        )
    return name


def _matryoshka(config: Mapping[str, Any], about: Mapping[str, Any]) -> tuple[int, ...] | None:
    for source in (config, about):
        listed = source.get("matryoshka_dimensions") or source.get("matryoshka_dims")
        if isinstance(listed, list) and listed:
            return tuple(sorted(int(size) for size in listed))
        if source.get("is_matryoshka") is True or source.get("truncate_dim"):
            return ()
    return None


def score_activation(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Return the activation of the scores of a cross encoder or classifier.

    Stated by sentence-transformers in three places, else chosen as transformers' pipeline does.

    Args:
        config: The content of config.json.
        about: The content of config_sentence_transformers.json, may be empty.

    Raises:
        SettingsError: It is an activation that is not served.
    """
    inside = config.get("sentence_transformers")
    stated = (
        about.get("activation_fn")
        or (inside.get("activation_fn") if isinstance(inside, Mapping) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    if stated:
        return activation_name(stated)
    kind = config.get("problem_type")
    if kind == "regression":
        return "Identity"
    if kind == "multi_label_classification" or len(labels(config)) == 1:
        return "Sigmoid"
    return "Softmax"


def labels(config: Mapping[str, Any]) -> list[str]:
    """Return the labels of a classifier in the order of its outputs; two if it does not say."""
    names = config.get("id2label")
    if isinstance(names, Mapping) and names:
        return [str(names[key]) for key in sorted(names, key=int)]
    count = _whole(config.get("num_labels")) or 2
    return [f"LABEL_{index}" for index in range(count)]


def _object(read: Read, name: str) -> Mapping[str, Any]:
    found = read(name)
    return found if isinstance(found, Mapping) else {}


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
