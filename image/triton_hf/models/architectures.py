"""Which architectures generate text here, decided from config.json alone.

The tables are those of transformers 5.23; a test compares them with the version that is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Model types that read a whole text at once. With `is_decoder` they generate.
ENCODERS = _words(
    """
    albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra
    ernie esm esmc eurobert flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm longformer
    luke megatron-bert mobilebert modernbert modernvbert mpnet mra neomme nomic_bert nystromformer
    perceiver rembert roberta roberta-prelayernorm roc_bert roformer squeezebert tapas ultrabert
    ultravbert xlm-roberta xlm-roberta-xl xmod yoso
    """
)
# Model types that write a text from another text or from speech.
ENCODER_DECODERS = _words(
    """
    audioflamingo3 bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt glmasr
    granite_speech granite_speech_plus led longt5 m2m_100 marian mbart moss_transcribe_diarize mt5
    musicflamingo mvp nemo_speechlm nllb-moe pegasus pegasus_x plbart prophetnet qwen2_audio
    qwen3_asr seamless_m4t seamless_m4t_v2 switch_transformers t5 t5gemma t5gemma2 umt5
    vibevoice_asr voxtral voxtral_realtime
    """
)
# Model types that keep a state of fixed size, in all layers or in some.
RECURRENT = _words(
    """
    bailing_hybrid bamba deepseek_v4 falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear
    mamba mamba2 nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next
    qwen4_exp qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya
    """
)
# Model types that compute every token from the whole text, or draft for another model.
CACHELESS = _words("gemma4_assistant gemma4_unified_assistant openai-gpt reformer xlm xlnet")

_GENERATES = re.compile(
    r"(ForCausalLM|LMHeadModel|ModelWithLMHead|ForConditionalGeneration|DoubleHeadsModel|Decoder)$"
)
_HEAD = re.compile(r"For[A-Z]\w*$")
# Kinds of layers whose state is no KV cache.
_RECURRENT_LAYERS = re.compile(r"conv|linear|mamba|recurrent|lstm|rwkv")


def text_refusal(config: Mapping[str, Any]) -> str | None:
    """Say why a model generates no text, as the end of a sentence; None if it may do so.

    Args:
        config: The content of config.json.
    """
    kind, name = _model_type(config), architecture(config)
    shown = name or kind
    if config.get("is_encoder_decoder") is True or kind in ENCODER_DECODERS:
        return f"is an encoder-decoder ({shown}), which this server does not serve"
    if kind in ENCODERS and config.get("is_decoder") is not True:
        return f"is an encoder ({shown}), which generates no text"
    if not name or _GENERATES.search(name):
        return None
    if head := _HEAD.search(name):
        return f"generates no text: its head is {head[0]} ({name})"
    return f"generates no text: it has no language-model head ({name})"


def cache_refusal(config: Mapping[str, Any]) -> str | None:
    """Say why a model has no KV cache, as the end of a sentence; None if it may have one."""
    kind = _model_type(config)
    layers = config.get("layer_types") or config.get("layers_block_type") or ()
    layers = (
        [layer for layer in layers if isinstance(layer, str)] if isinstance(layers, list) else []
    )
    if kind in RECURRENT or any(_RECURRENT_LAYERS.search(layer) for layer in layers):
        return (
            f"keeps a recurrent state ({kind}), and the engine 'transformers' serves models whose "
            "whole state is a KV cache"
        )
    if kind in CACHELESS:
        return f"has no KV cache ({kind}), which the engine 'transformers' needs"
    return None


def architecture(config: Mapping[str, Any]) -> str:
    """Return the class that config.json names, without the suffix of some frameworks, or ''."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else ""
    return first if isinstance(first, str) else ""


def _model_type(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else "of an unnamed type"
