"""Embedding models, rerankers and classifiers behind a real Triton, found from their files."""

from __future__ import annotations

import urllib.request
from typing import Any

import numpy as np
import pytest

from lib import pooling_models as tiny
from lib.pooling_models import Pooled
from lib.triton_client import eventually

TEXTS = [text for text in tiny.TEXTS if "[" not in text]


def rows(answer: dict[str, Any], name: str) -> Any:
    (found,) = (item for item in answer["outputs"] if item["name"] == name)
    return np.array(found["data"]).reshape(found["shape"])


def test_infer_gives_the_embeddings_of_sentence_transformers(pooled: Pooled) -> None:
    status, answer = pooled.client.infer("embedder", text=TEXTS)
    assert status == 200, answer
    found, expected = rows(answer, "embedding"), pooled.embedder.encode(TEXTS)
    assert (found * expected).sum(axis=1).min() >= 0.9999
    assert rows(answer, "prompt_tokens").shape == (len(TEXTS), 1)
    status, answer = pooled.client.infer("embedder", text=TEXTS, parameters={"dimensions": 8})
    assert rows(answer, "embedding").shape == (len(TEXTS), 8)


def test_infer_gives_the_scores_of_the_cross_encoder(pooled: Pooled) -> None:
    queries = ["what is it"] * len(TEXTS)
    status, answer = pooled.client.infer("ranker", query=queries, text=TEXTS)
    assert status == 200, answer
    expected = pooled.ranker.predict(list(zip(queries, TEXTS, strict=True)))
    np.testing.assert_allclose(rows(answer, "score")[:, 0], expected, atol=1e-5)


def test_infer_gives_labels_and_scores(pooled: Pooled) -> None:
    status, answer = pooled.client.infer("classifier", text=TEXTS[:2])
    assert status == 200, answer
    assert set(rows(answer, "label")[0]) == {"LABEL_0", "LABEL_1", "LABEL_2"}
    np.testing.assert_allclose(rows(answer, "score").sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "tensors", "parameters", "words"),
    [
        ("embedder", {"text": [" "]}, {}, "input 'text' is empty"),
        ("embedder", {"text": ["a"]}, {"dimensions": 3}, "'dimensions' must be one of 8"),
        ("embedder", {"text": ["a"]}, {"max_tokens": 3}, "unknown parameter 'max_tokens'"),
        ("embedder", {"text": ["a" * 99]}, {}, "this model takes at most 64"),
        ("ranker", {"text": ["a"]}, {}, "inputs 'query' and 'text' are needed"),
        ("classifier", {"text_pair": ["a"]}, {}, "input 'text' is missing"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it(
    pooled: Pooled, model, tensors, parameters, words
) -> None:
    status, answer = pooled.client.infer(model, **tensors, parameters=parameters)
    assert (status, words in answer["error"]) == (400, True), answer


def test_generate_answers_a_flat_object(pooled: Pooled) -> None:
    status, answer = pooled.client.generate("embedder", text="a b")
    assert status == 200
    assert len(answer["embedding"]) == 32


def test_there_is_no_streaming_companion_and_metrics_are_those_of_the_task(pooled: Pooled) -> None:
    status, _ = pooled.client.generate("embedder_stream", text="a")
    assert status in (400, 404)
    pooled.client.infer("embedder", text=["a"])
    eventually(lambda: pooled.client.metrics("embedder")["triton_hf_batch_rows_count"] >= 1)
    names = set(pooled.client.metrics("embedder"))
    assert "triton_hf_slots" in names
    assert not any("generation" in name or "kv_cache" in name for name in names)
    with urllib.request.urlopen(f"{pooled.client.server.url}/v2/health/ready") as ready:
        assert ready.status == 200
