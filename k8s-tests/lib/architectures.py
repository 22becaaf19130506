"""Tiny models of many families, with random weights, for tests.

The weights are wide, so that each token depends on all before it and rounding decides nothing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

tf: Any = transformers  # its configurations are hardly typed
VOCABULARY = 384
SPECIAL = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>", "<|end|>")
BOS, EOS, PAD = 256, 257, 261
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NEW_TOKENS = 24
# The longest is beyond the windows of those that have sliding windows.
PROMPTS = ("Hi.", "Count to ten, please.", "x" * 40, "A longer text, to the end. " * 8)

_TOKENS = {
    "vocab_size": VOCABULARY,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "pad_token_id": PAD,
}
_PLAIN = {
    **_TOKENS,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_SIZED = {**_GROUPED, "head_dim": 16}
_GPT2 = {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2048}
_TWO = {**_TOKENS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_BART = {
    **_TOKENS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 2048,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


def _longrope(original: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    length = {"original_max_position_embeddings": original}
    return {**length, **_rope("longrope", **factors, **length)}


# name -> class of the configuration in transformers, and its values.
DECODERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SIZED),
    "llama-rope3": (
        "LlamaConfig",
        {
            **_SIZED,
            **_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "llama-yarn": (
        "LlamaConfig",
        {**_SIZED, **_rope("yarn", factor=4.0, original_max_position_embeddings=64)},
    ),
    "llama-dynamic": (
        "LlamaConfig",
        {**_SIZED, "max_position_embeddings": 2048, **_rope("dynamic", factor=4.0)},
    ),
    "mistral-window": ("MistralConfig", {**_SIZED, "sliding_window": 32}),
    "qwen2": ("Qwen2Config", {**_SIZED, "tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2Config",
        {**_SIZED, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", _SIZED),
    "qwen3-moe": ("Qwen3MoeConfig", {**_SIZED, **_EXPERTS, "moe_intermediate_size": 64}),
    "gemma": ("GemmaConfig", _SIZED),
    "gemma2": ("Gemma2Config", {**_SIZED, "sliding_window": 32}),
    "gemma3": ("Gemma3TextConfig", {**_SIZED, "sliding_window": 32}),
    "gemma3-4b-shape": (
        "Gemma3TextConfig",
        {**_SIZED, "num_hidden_layers": 6, "sliding_window": 32},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {**_SIZED, "sliding_window": 32, "num_kv_shared_layers": 0},
    ),
    "phi": ("PhiConfig", _GROUPED),
    "phi3": ("Phi3Config", _GROUPED),
    "phi3-longrope": ("Phi3Config", {**_GROUPED, **_longrope(2048)}),
    "olmo2": ("Olmo2Config", _GROUPED),
    "olmo3-window": ("Olmo3Config", {**_GROUPED, "sliding_window": 32}),
    "olmoe": ("OlmoeConfig", {**_GROUPED, **_EXPERTS}),
    "granite": ("GraniteConfig", _GROUPED),
    "cohere": ("CohereConfig", _GROUPED),
    "cohere2-window": ("Cohere2Config", {**_GROUPED, "sliding_window": 32}),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt-neox": ("GPTNeoXConfig", _PLAIN),
    "gpt-neo-local": (
        "GPTNeoConfig",
        {
            **_TOKENS,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 32,
            "max_position_embeddings": 2048,
        },
    ),
    "gpt-bigcode": ("GPTBigCodeConfig", _GPT2),
    "gptj": ("GPTJConfig", {**_GPT2, "rotary_dim": 8}),
    "gpt-oss-sinks": (
        "GptOssConfig",
        {**_SIZED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    ),
    "codegen": ("CodeGenConfig", {**_GPT2, "rotary_dim": 8}),
    "ctrl": ("CTRLConfig", {**_GPT2, "dff": 128}),
    "opt": (
        "OPTConfig",
        {**_TWO, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 2048},
    ),
    "bloom": ("BloomConfig", {**_TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon-alibi": ("FalconConfig", {**_TWO, "alibi": True, "new_decoder_architecture": False}),
    "falcon-rotary": (
        "FalconConfig",
        {**_TWO, "alibi": False, "multi_query": True, "max_position_embeddings": 2048},
    ),
    "mpt-alibi": (
        "MptConfig",
        {**_TOKENS, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 2048},
    ),
    "starcoder2-window": ("Starcoder2Config", {**_GROUPED, "sliding_window": 32}),
    "stablelm": ("StableLmConfig", _GROUPED),
    "smollm3-nope": ("SmolLM3Config", _GROUPED),
    "glm4": ("Glm4Config", _SIZED),
    "deepseek-v3-mla": (
        "DeepseekV3Config",
        {
            **_PLAIN,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
    "exaone4": ("Exaone4Config", {**_GROUPED, "sliding_window": 32, "sliding_window_pattern": 4}),
    "llama4-chunked": (
        "Llama4TextConfig",
        {
            **_SIZED,
            "intermediate_size": 64,
            "intermediate_size_mlp": 128,
            "num_local_experts": 2,
            "attention_chunk_size": 32,
            **_rope("default"),
        },
    ),
    "biogpt": ("BioGptConfig", {**_TWO, "intermediate_size": 128, "max_position_embeddings": 2048}),
    "xglm": (
        "XGLMConfig",
        {
            **_TOKENS,
            "d_model": 64,
            "ffn_dim": 128,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 2048,
        },
    ),
    "nemotron": ("NemotronConfig", _GROUPED),
    "persimmon": ("PersimmonConfig", _PLAIN),
    "bitnet": ("BitNetConfig", _GROUPED),
    "ernie45": ("Ernie4_5Config", _SIZED),
}
# To be refused by what config.json says: the class of the model, and words of the reason.
REFUSED: Mapping[str, tuple[str, dict[str, Any], str, str]] = {
    "bert": ("BertConfig", _PLAIN, "BertForMaskedLM", "is an encoder (BertForMaskedLM)"),
    "bert-causal": ("BertConfig", _PLAIN, "BertLMHeadModel", "is an encoder (BertLMHeadModel)"),
    "roberta": (
        "RobertaConfig",
        _PLAIN,
        "RobertaForCausalLM",
        "is an encoder (RobertaForCausalLM)",
    ),
    "electra": ("ElectraConfig", _PLAIN, "ElectraForCausalLM", "is an encoder (Electra"),
    "modernbert": ("ModernBertConfig", _PLAIN, "ModernBertForMaskedLM", "is an encoder (Modern"),
    "t5": (
        "T5Config",
        {**_TOKENS, "d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16},
        "T5ForConditionalGeneration",
        "is an encoder-decoder (T5ForConditionalGeneration)",
    ),
    "bart": ("BartConfig", _BART, "BartForConditionalGeneration", "is an encoder-decoder (Bart"),
    "bart-causal": ("BartConfig", _BART, "BartForCausalLM", "is an encoder-decoder (Bart"),
    "pegasus": ("PegasusConfig", _BART, "PegasusForCausalLM", "is an encoder-decoder (Pegasus"),
    "xlnet": (
        "XLNetConfig",
        {**_TOKENS, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
        "XLNetLMHeadModel",
        "has no KV cache (xlnet)",
    ),
    "openai-gpt": (
        "OpenAIGPTConfig",
        _GPT2,
        "OpenAIGPTLMHeadModel",
        "has no KV cache (openai-gpt)",
    ),
    "mamba": (
        "MambaConfig",
        {**_TOKENS, "hidden_size": 64, "num_hidden_layers": 2},
        "MambaForCausalLM",
        "keeps a recurrent state (mamba)",
    ),
    "rwkv": (
        "RwkvConfig",
        {**_TOKENS, "hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
        "RwkvForCausalLM",
        "keeps a recurrent state (rwkv)",
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            **_GROUPED,
            "layers_block_type": ["mamba", "attention", "mamba", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 64,
        },
        "GraniteMoeHybridForCausalLM",
        "keeps a recurrent state (granitemoehybrid)",
    ),
    "lfm2-conv": (
        "Lfm2Config",
        {**_GROUPED, "full_attn_idxs": [1, 3], "block_multiple_of": 32},
        "Lfm2ForCausalLM",
        "keeps a recurrent state (lfm2)",
    ),
    "jamba-hybrid": (
        "JambaConfig",
        {
            **_GROUPED,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
        "JambaForCausalLM",
        "keeps a recurrent state (jamba)",
    ),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_SIZED,
            **_EXPERTS,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "Qwen3NextForCausalLM",
        "keeps a recurrent state (qwen3_next)",
    ),
    "minimax-lightning": (
        "MiniMaxConfig",
        {**_SIZED, "num_local_experts": 2, "block_size": 16},
        "MiniMaxForCausalLM",
        "keeps a recurrent state (minimax)",
    ),
    "llama-classifier": (
        "LlamaConfig",
        _SIZED,
        "LlamaForSequenceClassification",
        "its head is ForSequenceClassification",
    ),
    "llama-headless": ("LlamaConfig", _SIZED, "LlamaModel", "it has no language-model head"),
}


@functools.cache
def characters() -> Tokenizer:
    """Return a tokenizer in which each token is one whole character: any answer is readable."""
    codes = (*range(32, 127), *range(0x410, 0x410 + 64), *range(0x4E00, 0x4E00 + VOCABULARY))
    ids = {name: BOS + index for index, name in enumerate(SPECIAL)}
    free = (number for number in range(VOCABULARY) if not BOS <= number < BOS + len(SPECIAL))
    ids |= dict(zip(map(chr, codes), free, strict=False))
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="?"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return tokenizer


def write_decoder(folder: Path, name: str) -> Path:
    """Write the repository of one of `DECODERS`; return its folder."""
    kind, values = DECODERS[name]
    config = getattr(tf, kind)(**values)
    return write_model(folder, config, lambda: tf.AutoModelForCausalLM.from_config(config))


def write_short(folder: Path) -> Path:
    """Write a repository whose rotary angles hold for 64 positions; return its folder."""
    config = tf.Phi3Config(**_GROUPED, **_longrope(64))
    return write_model(folder, config, lambda: tf.AutoModelForCausalLM.from_config(config))


def write_refused(folder: Path, name: str) -> Path:
    """Write the repository of one of `REFUSED`; return its folder."""
    kind, values, model, _ = REFUSED[name]
    config = getattr(tf, kind)(**values)
    return write_model(folder, config, lambda: getattr(tf, model)(config))


def write_model(folder: Path, config: Any, make: Callable[[], Any]) -> Path:
    """Write a model with random weights and the tokenizer of `characters`; return the folder."""
    config.initializer_range = 0.2
    torch.manual_seed(3)
    make().float().eval().save_pretrained(folder)
    characters().save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|eos|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def greedy_answer(model: Any, prompt: str) -> str:
    """Return what `generate` of transformers answers to a prompt, in `NEW_TOKENS` tokens."""
    text = f"<|user|>{prompt}<|end|><|assistant|>"
    ids = torch.tensor([characters().encode(text, add_special_tokens=False).ids])
    model.generation_config.eos_token_id = None  # as with `ignore_eos`
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=PAD,
        )
    return str(characters().decode(made[0, ids.shape[1] :].tolist(), skip_special_tokens=True))
