"""Which models the native step computes, and how their weights get into it."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from triton_native.checkpoint import Checkpoint
from triton_native.library import Config

# Exactly these: what derives from them, or has the same parts, may compute something else.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Angles that depend on the position alone, not on the length of the sequence.
_ROTATIONS = ("default", "linear", "llama3", "yarn")
_WIDEST_HEAD = 256
_PANEL = 16  # outputs of a panel

# Numbers of the enumerations in step.h.
_QKV, _OUT, _GATE_UP, _DOWN, _HEAD, _EMBEDDING = range(6)
_INPUT_NORM, _POST_NORM, _FINAL_NORM, _Q_NORM, _K_NORM, _BIAS = range(6)
_NO_LAYER = -1
_BF16, _INT8 = range(2)
_INT8_BLOCK = 32  # inputs with one scale

_EMBED, _LM_HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_REST = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def refusal(checkpoint: Checkpoint, *, int8: bool = False) -> str | None:
    """Return why the native step does not compute this model, as the rest of a sentence.

    Args:
        checkpoint: A causal language model.
        int8: Whether its weights shall be brought into int8.
    """
    config = checkpoint.config
    kind = _CLASSES.get(config.model_type)
    if kind is None or kind not in (config.architectures or [kind]):
        return f"it does not know models of the type '{config.model_type}'"
    if getattr(config, "quantization_config", None):
        return "its weights are stored quantised"
    for name in sorted(checkpoint.names):
        dtype, device = checkpoint.look(name)
        if dtype != "bfloat16":
            return f"it computes in bfloat16, and {name} is {dtype}"
        if device != "cpu":
            return f"{name} is on {device}"
    return (
        _shape_refusal(config, int8=int8)
        or _names_refusal(checkpoint)
        or _sizes_refusal(checkpoint)
    )


def _shape_refusal(config: Any, *, int8: bool) -> str | None:
    width = _head_dim(config)
    multiple = _INT8_BLOCK if int8 else _PANEL
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "head_dim": width,
        "output of all heads": config.num_attention_heads * width,
    }
    for name, size in sizes.items():
        least = _PANEL if name == "head_dim" else multiple
        if size % least:
            return f"its {name} is {size}, no multiple of {least}"
    if width > _WIDEST_HEAD:
        return f"its head_dim is {width}, above {_WIDEST_HEAD}"
    if config.hidden_act != "silu":
        return f"its activation is '{config.hidden_act}'"
    rotation = config.rope_parameters["rope_type"]
    if rotation not in _ROTATIONS:
        return f"its positions are of the type '{rotation}'"
    if len(set(getattr(config, "layer_types", None) or [""])) > 1:
        return "only some of its layers have a sliding window"
    return None


def _names_refusal(checkpoint: Checkpoint) -> str | None:
    config, names = checkpoint.config, checkpoint.names
    layers = [f"model.layers.{index}." for index in range(config.num_hidden_layers)]
    heads = set() if config.tie_word_embeddings else {_LM_HEAD}
    needed = {_EMBED, _NORM} | heads
    needed |= {f"{at}{part}.weight" for at in layers for part in (*_PARTS, *_REST, *_NORMS)}
    if missing := needed - names:
        return f"it has no {min(missing)}"
    allowed = {_LM_HEAD} | {f"{at}{part}.bias" for at in layers for part in _PARTS}
    allowed |= {f"{at}{part}.weight" for at in layers for part in _HEAD_NORMS}
    # Angles that old files store, and that are computed from the configuration.
    others = {name for name in names - needed - allowed if not name.endswith(".inv_freq")}
    if any(name.endswith(".bias") for name in others):
        return "it has biases beside those of queries, keys and values"
    return f"it does not know its weight {min(others)}" if others else None


def _sizes_refusal(checkpoint: Checkpoint) -> str | None:
    """Return which weight has another shape than the configuration says: C++ takes its word."""
    config = checkpoint.config
    hidden, width, between = config.hidden_size, _head_dim(config), config.intermediate_size
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    parts = dict(zip(_PARTS, (queries, keys, keys), strict=True))
    rest = ((hidden, queries), (between, hidden), (between, hidden), (hidden, between))
    expected: dict[str, tuple[int, ...]] = {
        **{f"{part}.weight": (outputs, hidden) for part, outputs in parts.items()},
        **{f"{part}.bias": (outputs,) for part, outputs in parts.items()},
        **{f"{part}.weight": shape for part, shape in zip(_REST, rest, strict=True)},
        **{f"{part}.weight": (hidden,) for part in _NORMS},
        **{f"{part}.weight": (width,) for part in _HEAD_NORMS},
    }
    whole = dict.fromkeys((_EMBED, _LM_HEAD), (config.vocab_size, hidden)) | {_NORM: (hidden,)}
    for name in sorted(checkpoint.names):
        # model.layers.N.PART
        wanted = whole.get(name) or expected.get(name.split(".", 3)[-1])
        if wanted is not None and checkpoint.shape(name) != wanted:
            return f"{name} has the shape {checkpoint.shape(name)}, and its configuration {wanted}"
    return None


def _head_dim(config: Any) -> int:
    stated: int | None = getattr(config, "head_dim", None)
    return stated or int(config.hidden_size // config.num_attention_heads)


def _window(config: Any) -> int:
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    window: int = getattr(config, "sliding_window", None) or 0
    return window if kinds == {"sliding_attention"} else 0


def sizes_of(config: Any, *, threads: int, int8: bool = False) -> Config:
    """Describe a model that is not refused."""
    width = _head_dim(config)
    return Config(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=width,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        window=_window(config),
        threads=threads,
        separate_embedding=not config.tie_word_embeddings,
        precision=_INT8 if int8 else _BF16,
        epsilon=config.rms_norm_eps,
        scale=width**-0.5,
    )


class Packer:
    """Hands the weights of a model over, one after another."""

    def __init__(self, library: ctypes.CDLL, handle: int, checkpoint: Checkpoint) -> None:
        """Fill this native model from a checkpoint that is not refused."""
        self._library, self._handle = library, handle
        self._from = checkpoint

    def pack(self, *, positions: int) -> None:
        """Pack everything; a model in memory cannot be used afterwards.

        Args:
            positions: Longest sequence in tokens.
        """
        config = self._from.config
        self._rotation(config, positions)
        for index in range(config.num_hidden_layers):
            self._layer(index, f"model.layers.{index}.")
        self._vector(_FINAL_NORM, _NO_LAYER, self._from.take(_NORM))
        embedding = self._from.take(_EMBED)
        if config.tie_word_embeddings:
            self._weight(_HEAD, _NO_LAYER, embedding)
            return
        self._weight(_EMBEDDING, _NO_LAYER, embedding)
        self._weight(_HEAD, _NO_LAYER, self._from.take(_LM_HEAD))

    def _layer(self, index: int, at: str) -> None:
        first = 0
        for part in _PARTS:
            weight = self._from.take(f"{at}{part}.weight")
            self._weight(_QKV, index, weight, first=first)
            first += weight.shape[0]
        if f"{at}{_PARTS[0]}.bias" in self._from.names:
            biases = [self._from.take(f"{at}{part}.bias") for part in _PARTS]
            self._vector(_BIAS, index, torch.cat(biases))
        places = ((_OUT, 0), (_GATE_UP, 0), (_GATE_UP, 1), (_DOWN, 0))
        for name, (place, half) in zip(_REST, places, strict=True):
            self._weight(place, index, self._from.take(f"{at}{name}.weight"), part=half)
        kinds = (_INPUT_NORM, _POST_NORM, _Q_NORM, _K_NORM)
        for name, kind in zip((*_NORMS, *_HEAD_NORMS), kinds, strict=True):
            if f"{at}{name}.weight" in self._from.names:
                self._vector(kind, index, self._from.take(f"{at}{name}.weight"))

    def _rotation(self, config: Any, positions: int) -> None:
        tables = [table.contiguous() for table in rotation(config, positions)]
        self._library.native_set_rotation(
            self._handle, positions, tables[0].data_ptr(), tables[1].data_ptr()
        )

    def _weight(
        self, kind: int, layer: int, weight: torch.Tensor, *, part: int = 0, first: int = 0
    ) -> None:
        plain = weight.contiguous()
        self._library.native_set_weight(
            self._handle, kind, layer, part, first, plain.shape[0], plain.data_ptr()
        )

    def _vector(self, kind: int, layer: int, vector: torch.Tensor) -> None:
        plain = vector.contiguous()
        self._library.native_set_vector(self._handle, kind, layer, len(plain), plain.data_ptr())


def rotation(config: Any, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of the angles at each position, [positions, head_dim / 2], in bf16.

    As the rotary embeddings of transformers compute them, without their models.
    """
    kind, width = config.rope_parameters["rope_type"], _head_dim(config)
    if kind == "default":
        powers = torch.arange(0, width, 2, dtype=torch.float) / width
        frequencies, factor = 1.0 / (config.rope_parameters["rope_theta"] ** powers), 1.0
    else:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config)
    angles = torch.arange(positions)[:, None].float() * frequencies
    return (angles.cos() * factor).bfloat16(), (angles.sin() * factor).bfloat16()
