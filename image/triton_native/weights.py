"""Which models the native step computes, and how their weights get into it."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from triton_native.library import Config

# Exactly these classes: what derives from them, or has the same parts, may compute something else.
_CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# Angles that depend on the position alone, not on the length of the sequence.
_ROTATIONS = ("default", "linear", "llama3", "yarn")
_WIDEST_HEAD = 256

# Numbers of the enumerations in llama.cpp.
_QKV, _OUT, _GATE_UP, _DOWN, _HEAD, _EMBEDDING = range(6)
_INPUT_NORM, _POST_NORM, _FINAL_NORM, _Q_NORM, _K_NORM, _BIAS = range(6)
_NO_LAYER = -1


def refusal(model: Any) -> str | None:
    """Return why the native step does not compute this model, as the rest of a sentence."""
    config = model.config
    if type(model).__name__ not in _CLASSES or not type(model).__module__.startswith(
        "transformers.models."
    ):
        return f"it does not know models of the type '{config.model_type}'"
    for name, tensor in model.named_parameters():
        if tensor.dtype is not torch.bfloat16:
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"it computes in bfloat16, and {name} is {kind}"
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device.type}"
    return _shape_refusal(model)


def _shape_refusal(model: Any) -> str | None:
    config, layer = model.config, model.model.layers[0]
    attention = layer.self_attn
    width = attention.head_dim
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "head_dim": width,
    }
    for name, size in sizes.items():
        if size % 16:
            return f"its {name} is {size}, no multiple of 16"
    if width > _WIDEST_HEAD:
        return f"its head_dim is {width}, above {_WIDEST_HEAD}"
    if config.hidden_act != "silu":
        return f"its activation is '{config.hidden_act}'"
    rotation = model.model.rotary_emb.rope_type
    if rotation not in _ROTATIONS:
        return f"its positions are of the type '{rotation}'"
    if len({_window(one.self_attn, config) for one in model.model.layers}) > 1:
        return "only some of its layers have a sliding window"
    plain = (attention.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
    if any(part.bias is not None for part in (*plain, model.lm_head)):
        return "it has biases beside those of queries, keys and values"
    return None


def _window(attention: Any, config: Any) -> int:
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or 0
    return getattr(config, "sliding_window", None) or 0


def sizes_of(model: Any, *, threads: int) -> Config:
    """Describe a model that is not refused."""
    config, attention = model.config, model.model.layers[0].self_attn
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return Config(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        window=_window(attention, config),
        threads=threads,
        separate_embedding=not tied,
        epsilon=config.rms_norm_eps,
        scale=attention.scaling,
    )


class Packer:
    """Hands the weights of a model over, one after another, and frees each in the model."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        """Fill this native model."""
        self._library, self._handle = library, handle

    def pack(self, model: Any, *, positions: int) -> None:
        """Pack everything; the model cannot be used afterwards.

        Args:
            model: One that is not refused.
            positions: Longest sequence in tokens.
        """
        self._rotation(model, positions)
        for index, layer in enumerate(model.model.layers):
            self._layer(index, layer)
        self._vector(_FINAL_NORM, _NO_LAYER, model.model.norm.weight)
        embedding = model.model.embed_tokens.weight
        if model.lm_head.weight is not embedding:
            self._weight(_EMBEDDING, _NO_LAYER, embedding)
        self._weight(_HEAD, _NO_LAYER, model.lm_head.weight)

    def _layer(self, index: int, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        first, parts = 0, (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [part.bias for part in parts]
        for part in parts:
            outputs = part.weight.shape[0]
            self._weight(_QKV, index, part.weight, first=first)
            first += outputs
        if biases[0] is not None:
            self._vector(_BIAS, index, torch.cat(biases))
        self._weight(_OUT, index, attention.o_proj.weight)
        self._weight(_GATE_UP, index, mlp.gate_proj.weight, part=0)
        self._weight(_GATE_UP, index, mlp.up_proj.weight, part=1)
        self._weight(_DOWN, index, mlp.down_proj.weight)
        self._vector(_INPUT_NORM, index, layer.input_layernorm.weight)
        self._vector(_POST_NORM, index, layer.post_attention_layernorm.weight)
        if hasattr(attention, "q_norm"):
            self._vector(_Q_NORM, index, attention.q_norm.weight)
            self._vector(_K_NORM, index, attention.k_norm.weight)

    def _rotation(self, model: Any, positions: int) -> None:
        embedding = model.model.rotary_emb
        like = torch.zeros(1, dtype=torch.bfloat16)
        cosines, sines = embedding(like, torch.arange(positions).unsqueeze(0))
        half = cosines.shape[-1] // 2
        tables = [table[0, :, :half].contiguous() for table in (cosines, sines)]
        self._library.native_set_rotation(
            self._handle, positions, tables[0].data_ptr(), tables[1].data_ptr()
        )

    def _weight(
        self, kind: int, layer: int, weight: torch.Tensor, *, part: int = 0, first: int = 0
    ) -> None:
        plain = weight.detach().contiguous()
        self._library.native_set_weight(
            self._handle, kind, layer, part, first, plain.shape[0], plain.data_ptr()
        )
        weight.data = weight.new_empty(0)

    def _vector(self, kind: int, layer: int, vector: torch.Tensor) -> None:
        plain = vector.detach().contiguous()
        self._library.native_set_vector(self._handle, kind, layer, len(plain), plain.data_ptr())
