"""Tiny embedding models, cross encoders and classifiers with random weights, for tests.

sentence-transformers writes its own folders, so the files are those that people have.
"""

from __future__ import annotations

import dataclasses
import json
import os
import string
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from lib.triton_client import Client
from tools.hub_mirror.server import running_hub
from tools.place import ROOT

IMAGE = ROOT / "image"

tf: Any = transformers  # its configurations are hardly typed
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = string.ascii_lowercase + string.digits + string.punctuation + "äöüß"
WORDS = (*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS))
LONGEST = 64
_SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
TEXTS = (
    "a short one",
    "one that is longer than the others, with words of many letters",
    "numbers 1 2 3, and [SEP] that is text?",
    "x",
    "zwölf boxkämpfer jagen viktor",
)


def tokenizer() -> Any:
    """Return BERT's tokenizer with a vocabulary of letters."""
    vocab = {word: index for index, word in enumerate(WORDS)}
    return tf.BertTokenizer(vocab=vocab, strip_accents=False, model_max_length=LONGEST)


def write_transformer(folder: Path, model: Any) -> Path:
    """Write a model of transformers with its tokenizer; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.float().eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bert(seed: int = 1) -> Any:
    """Return a tiny BERT."""
    torch.manual_seed(seed)
    return tf.BertModel(tf.BertConfig(**_SIZES))


def mpnet() -> Any:
    """Return a tiny MPNet, whose positions begin behind the padding token."""
    torch.manual_seed(1)
    return tf.MPNetModel(tf.MPNetConfig(**{**_SIZES, "max_position_embeddings": LONGEST + 2}))


def qwen3() -> Any:
    """Return a tiny decoder, as embedding models of the last token have."""
    torch.manual_seed(1)
    sizes = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
    return tf.Qwen3Model(tf.Qwen3Config(**sizes))


def t5() -> Any:
    """Return a tiny T5, of which embedding models use the encoder."""
    torch.manual_seed(1)
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    config = tf.T5Config(vocab_size=len(WORDS), pad_token_id=0, decoder_start_token_id=0, **sizes)
    return tf.T5ForConditionalGeneration(config)


# name -> the model, the modes of pooling, whether a linear layer and a normalisation follow.
EMBEDDERS: Mapping[str, tuple[Callable[[], Any], tuple[str, ...], bool, bool]] = {
    "bert, mean, normalised": (bert, ("mean",), False, True),
    "bert, cls": (bert, ("cls",), False, False),
    "bert, max and mean": (bert, ("max", "mean"), False, True),
    "bert, weighted mean": (bert, ("weightedmean",), False, False),
    "bert, mean by root": (bert, ("mean_sqrt_len_tokens",), False, False),
    "mpnet, mean": (mpnet, ("mean",), False, True),
    "qwen3, last token": (qwen3, ("lasttoken",), False, True),
    "t5, mean and dense": (t5, ("mean",), True, True),
}


def write_embedder(
    folder: Path, name: str = "bert, mean, normalised", *, keeps_prompt: bool = True, **config: Any
) -> Any:
    """Write a folder of sentence-transformers; return its model.

    Args:
        folder: Where.
        name: One of `EMBEDDERS`.
        keeps_prompt: Whether the prompt counts in pooling.
        config: What else its config.json says.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    make, modes, dense, normalizes = EMBEDDERS[name]
    inner = write_transformer(folder.parent / f"{folder.name}-inner", make())
    _update(inner / "config.json", **config)
    modules: list[Any] = [Transformer(str(inner), max_seq_length=LONGEST)]
    pooling = Pooling(32, pooling_mode=modes, include_prompt=keeps_prompt)
    modules.append(pooling)
    if dense:
        torch.manual_seed(5)
        modules.append(Dense(pooling.get_embedding_dimension(), 16))
    if normalizes:
        modules.append(Normalize())
    prompts = {"query": "query: ", "document": ""}
    model = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    model.save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def write_cross_encoder(folder: Path) -> Any:
    """Write a reranker of sentence-transformers; return its model."""
    from sentence_transformers import CrossEncoder

    inner = write_classifier(folder.parent / f"{folder.name}-inner", num_labels=1)
    CrossEncoder(str(inner), device="cpu").save(str(folder))
    return CrossEncoder(str(folder), device="cpu")


def write_classifier(folder: Path, **config: Any) -> Path:
    """Write a BERT with a head for sequence classification; return the folder."""
    torch.manual_seed(2)
    model = tf.BertForSequenceClassification(tf.BertConfig(**_SIZES, **config))
    return write_transformer(folder, model)


def write_llama_reranker(folder: Path) -> Path:
    """Write a decoder with a head of one output and no padding token; return the folder."""
    torch.manual_seed(2)
    sizes = {**_SIZES, "num_key_value_heads": 2, "pad_token_id": None}
    return write_transformer(
        folder, tf.LlamaForSequenceClassification(tf.LlamaConfig(**sizes, num_labels=1))
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled:
    """A server with `embedder`, `ranker` and `classifier`, and what they should answer.

    Attributes:
        embedder: The model of sentence-transformers.
        ranker: The cross encoder of sentence-transformers.
        store: The model store; the commits are 40 times 0, 1 and 2.
    """

    store: Path
    client: Client
    embedder: Any
    ranker: Any


def write_store(root: Path) -> tuple[Any, Any]:
    """Fill the store `root/store`, generation g1, from a Hub; return the two references.

    The specification names no task: it is found in the files.
    """
    embedder = write_embedder(root / "hub/org/embedder/files", matryoshka_dimensions=[8])
    ranker = write_cross_encoder(root / "hub/org/ranker/files")
    write_classifier(root / "hub/org/classifier/files", num_labels=3)
    names = ("embedder", "ranker", "classifier")
    for index, name in enumerate(names):
        (root / "hub/org" / name / "revision").write_text(str(index) * 40)
    models = {
        name: {"repository": f"org/{name}", "parameters": {"device": "cpu"}} for name in names
    }
    (root / "spec.json").write_text(json.dumps({"models": models}))
    with running_hub(root / "hub") as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "triton_hf", "sync", "--spec", str(root / "spec.json")]
        command += ["--store", str(root / "store"), "--generation", "g1"]
        subprocess.run(
            command,
            env={**os.environ, **environment, "PYTHONPATH": str(IMAGE)},
            check=True,
            timeout=120,
        )
    return embedder, ranker


def _update(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**found, **values}), encoding="utf-8")
