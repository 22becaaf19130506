"""Embeddings are those of sentence-transformers, scores those of transformers."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from lib import pooling_models as tiny
from triton_hf.engines import pooling
from triton_hf.engines.pooling import PoolingEngine
from triton_hf.errors import OverloadedError, RequestError, SettingsError, TritonHFError
from triton_hf.health import Heartbeat
from triton_hf.metrics import POOLING_FAMILIES, Metrics
from triton_hf.models.settings import parse_settings
from triton_hf.serving.pooling import PoolingRow, PoolingService

pytest.importorskip("sentence_transformers", reason="needs k8s-tests/requirements.txt")
TEXTS = list(tiny.TEXTS)
PAIRS = [("what is it", text) for text in TEXTS]


class Bench:
    """A started engine and what a client does with it."""

    def __init__(self, engine: PoolingEngine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self.service = PoolingService(engine=engine, metrics=metrics)

    def submit(self, parameters: dict[str, Any], **inputs: list[str]) -> queue.Queue[Any]:
        found: queue.Queue[Any] = queue.Queue()
        rows = {name: [text.encode() for text in texts] for name, texts in inputs.items()}
        self.service.submit(rows, json.dumps(parameters), found.put)
        return found

    def rows(
        self, parameters: dict[str, Any] | None = None, **inputs: list[str]
    ) -> list[PoolingRow]:
        found = self.submit(parameters or {}, **inputs).get(timeout=60)
        if isinstance(found, TritonHFError):
            raise found
        return list(found)

    def values(self, parameters: dict[str, Any] | None = None, **inputs: list[str]) -> Any:
        return np.array([row.values for row in self.rows(parameters, **inputs)])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    torch.set_num_threads(1)
    started: list[Bench] = []

    def start(folder: Path, task: str, **parameters: str) -> Bench:
        settings = parse_settings({"task": task, "repo_id": "o/n", "device": "cpu", **parameters})
        metrics = Metrics(POOLING_FAMILIES)
        engine = PoolingEngine(
            settings=settings, metrics=metrics, heartbeat=Heartbeat(tmp_path / "beat.json")
        )
        engine._load = lambda: engine._open(folder)  # type: ignore[method-assign]
        engine.start()
        started.append(Bench(engine, metrics))
        return started[-1]

    yield start
    for bench in started:
        bench.service.stop()
        bench.engine.stop()


def cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# Embeddings.


@pytest.mark.parametrize("name", tiny.EMBEDDERS)
def test_embeddings_are_those_of_sentence_transformers(name, tmp_path, serve) -> None:
    reference = tiny.write_embedder(tmp_path / "model", name)
    bench = serve(tmp_path / "model", "embed")
    plain = [text for text in TEXTS if "[" not in text]
    expected = reference.encode(plain)
    together = bench.values(text=plain)
    alone = np.concatenate([bench.values(text=[text]) for text in plain])
    for found in (together, alone):
        assert found.shape == expected.shape
        assert cosines(found, expected).min() >= 0.9999
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("keeps", [True, False])
def test_a_prompt_stands_before_the_text_and_counts_as_the_repository_says(
    keeps, tmp_path, serve
) -> None:
    reference = tiny.write_embedder(tmp_path / "model", keeps_prompt=keeps)
    bench = serve(tmp_path / "model", "embed")
    expected = reference.encode(TEXTS[:2], prompt_name="query")
    found = bench.values({"prompt_name": "query"}, text=TEXTS[:2])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, bench.values(text=TEXTS[:2]), atol=1e-3)
    with pytest.raises(RequestError, match="'prompt_name' must be one of document, query, got"):
        bench.rows({"prompt_name": "passage"}, text=["a"])


def test_the_prompt_of_a_model_can_be_its_default(tmp_path, serve) -> None:
    reference = tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed", prompt_name="query")
    expected = reference.encode(["a b"], prompt_name="query")
    np.testing.assert_allclose(bench.values(text=["a b"]), expected, atol=1e-5)
    with pytest.raises(SettingsError, match="'prompt_name' must be one of document, query"):
        serve(tmp_path / "model", "embed", prompt_name="passage")


def test_dimensions_of_a_matryoshka_model_are_cut_and_have_length_1(tmp_path, serve) -> None:
    reference = tiny.write_embedder(tmp_path / "model", matryoshka_dimensions=[8, 16])
    bench = serve(tmp_path / "model", "embed")
    expected = reference.encode(TEXTS[:2], truncate_dim=8)
    found = bench.values({"dimensions": 8}, text=TEXTS[:2])
    assert cosines(found, expected).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert bench.values({"dimensions": 32}, text=["a"]).shape == (1, 32)
    with pytest.raises(RequestError, match="'dimensions' must be one of 8, 16, got 7"):
        bench.rows({"dimensions": 7}, text=["a"])


def test_dimensions_of_another_model_are_refused_unless_its_parameters_allow_them(
    tmp_path, serve
) -> None:
    tiny.write_embedder(tmp_path / "model")
    with pytest.raises(RequestError, match=r"'dimensions' must be 32, got 8: .* no Matryoshka"):
        serve(tmp_path / "model", "embed").rows({"dimensions": 8}, text=["a"])
    bench = serve(tmp_path / "model", "embed", matryoshka="true")
    assert bench.values({"dimensions": 5}, text=["a"]).shape == (1, 5)
    with pytest.raises(RequestError, match="a whole number from 1 to 32, got 33"):
        bench.rows({"dimensions": 33}, text=["a"])


def test_the_pooling_of_older_files_is_the_same(tmp_path, serve) -> None:
    reference = tiny.write_embedder(tmp_path / "model", "bert, max and mean")
    old = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False}
    old |= {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(old))
    found = serve(tmp_path / "model", "embed").values(text=TEXTS[:2])
    np.testing.assert_allclose(found, reference.encode(TEXTS[:2]), atol=1e-5)


def test_an_encoder_without_these_files_averages_its_tokens(tmp_path, serve) -> None:
    from sentence_transformers import SentenceTransformer

    tiny.write_transformer(tmp_path / "model", tiny.bert())
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["a b"])
    found = serve(tmp_path / "model", "embed").values(text=["a b"])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_token_ids_are_taken_as_they_are(tmp_path, serve) -> None:
    tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed")
    ids = tiny.tokenizer()("a short one")["input_ids"]
    expected = bench.values(text=["a short one"])
    np.testing.assert_allclose(bench.values(tokens=[json.dumps(ids)]), expected, atol=1e-6)
    for wrong, words in {
        "[999]": "token ids of this model go from 0 to",
        "[]": "is an empty list",
        '["a"]': "must be a JSON list of token ids",
        "[true]": "must be a JSON list of token ids",
        "[[1]]": "must be a JSON list of token ids",
        "{": "must be a JSON list of token ids",
    }.items():
        with pytest.raises(RequestError, match=words):
            bench.rows(tokens=[wrong])


def test_a_special_token_in_a_text_is_text(tmp_path, serve) -> None:
    tiny.write_embedder(tmp_path / "model")
    rows = serve(tmp_path / "model", "embed").rows(text=["[SEP]", "(sep)"])
    assert [row.prompt_tokens for row in rows] == [7, 7]


def test_a_text_that_is_too_long_is_refused_or_cut_on_demand(tmp_path, serve) -> None:
    reference = tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed")
    long = "word " * 100
    with pytest.raises(RequestError, match="has 402 tokens; this model takes at most 64"):
        bench.rows(text=[long])
    with pytest.raises(RequestError, match="has 100000 characters; this model takes at most 64"):
        bench.rows(text=["a" * 100_000])
    found = bench.rows({"truncate": True}, text=[long])
    assert found[0].prompt_tokens == 64
    np.testing.assert_allclose([found[0].values], reference.encode([long]), atol=1e-5)
    short = serve(tmp_path / "model", "embed", max_input_tokens="5")
    with pytest.raises(RequestError, match="takes at most 5"):
        short.rows(text=["a b c d e"])
    with pytest.raises(
        SettingsError, match="'max_input_tokens' is 100, but o/n handles at most 64"
    ):
        serve(tmp_path / "model", "embed", max_input_tokens="100")


# Scores.


def test_scores_of_a_cross_encoder_are_those_of_sentence_transformers(tmp_path, serve) -> None:
    reference = tiny.write_cross_encoder(tmp_path / "model")
    bench = serve(tmp_path / "model", "rank")
    pairs = [pair for pair in PAIRS if "[" not in pair[1]]
    queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
    expected = reference.predict(pairs)
    found = bench.values(query=queries, text=texts)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    raw = bench.values({"raw_scores": True}, query=queries, text=texts)
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), found, atol=1e-5)
    assert bench.values(query=["a"], text=[""]).shape == (1, 1)
    with pytest.raises(RequestError, match="inputs 'query' and 'text' are needed"):
        bench.rows(text=["a"])


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"num_labels": 3}, "softmax"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "sigmoid"),
        ({"num_labels": 1, "problem_type": "regression"}, "none"),
    ],
)
def test_labels_and_scores_are_those_of_the_pipeline(config, kind, tmp_path, serve) -> None:
    folder = tiny.write_classifier(tmp_path / "model", **config)
    bench = serve(folder, "classify")
    pipe = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    for row, expected in zip(bench.rows(text=TEXTS[:2]), pipe(TEXTS[:2]), strict=True):
        assert list(row.labels) == [one["label"] for one in expected], kind
        np.testing.assert_allclose(row.values, [one["score"] for one in expected], atol=1e-5)
    (best,) = bench.rows({"top_labels": 1}, text=["a"])
    assert (len(best.labels), len(best.values)) == (1, 1)


def test_a_classifier_takes_pairs(tmp_path, serve) -> None:
    folder = tiny.write_classifier(tmp_path / "model", num_labels=2)
    (row,) = serve(folder, "classify").rows({"raw_scores": True}, text=["a b"], text_pair=["c d"])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**tiny.tokenizer()("a b", "c d", return_tensors="pt")).logits[0]
    np.testing.assert_allclose(sorted(row.values), sorted(logits.tolist()), atol=1e-5)


def test_a_decoder_without_a_padding_token_ranks_one_text_at_a_time(tmp_path, serve) -> None:
    folder = tiny.write_llama_reranker(tmp_path / "model")
    bench = serve(folder, "rank")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    found = bench.values({"raw_scores": True}, query=["q"] * 2, text=TEXTS[:2])
    for value, text in zip(found[:, 0], TEXTS[:2], strict=True):
        ids = tiny.tokenizer()("q", text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            assert value == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=1e-5)


# What cannot be served.


def test_a_repository_for_another_task_is_refused_with_the_right_one(tmp_path, serve) -> None:
    tiny.write_classifier(tmp_path / "model", num_labels=3)
    with pytest.raises(SettingsError, match="has 3 labels, and the task rank needs one; state"):
        serve(tmp_path / "model", "rank")
    tiny.write_transformer(tmp_path / "plain", tiny.bert())
    with pytest.raises(SettingsError, match="no head for sequence classification"):
        serve(tmp_path / "plain", "classify")


def test_a_head_that_the_files_lack_is_not_made_up(tmp_path, serve) -> None:
    folder = tiny.write_transformer(tmp_path / "model", tiny.bert())
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        SettingsError, match=r"lack the tensor classifier.* would have been made up"
    ):
        serve(folder, "classify")


def test_a_module_that_is_not_computed_is_named(tmp_path, serve) -> None:
    tiny.write_embedder(tmp_path / "model")
    path = tmp_path / "model" / "modules.json"
    path.write_text(path.read_text().replace("normalize.Normalize", "cnn.CNN"))
    with pytest.raises(SettingsError, match="has a module 'CNN'; this server computes"):
        serve(tmp_path / "model", "embed")


# The queue.


def test_a_fault_in_a_batch_fails_only_the_row_at_fault(tmp_path, serve, monkeypatch) -> None:
    tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed")
    compute = bench.engine._network.compute

    def breaking(rows: Any) -> Any:
        if any(len(row.ids) == 3 for row in rows):
            raise ZeroDivisionError
        return compute(rows)

    monkeypatch.setattr(bench.engine._network, "compute", breaking)
    good, bad = bench.submit({}, text=["a b"]), bench.submit({}, text=["x"])
    assert len(good.get(timeout=60)) == 1
    assert "failed on this request" in str(bad.get(timeout=60))
    assert bench.values(text=["a b"]).shape == (1, 32)


def test_an_output_that_is_no_number_fails_its_row_alone(tmp_path, serve, monkeypatch) -> None:
    tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed")
    compute = bench.engine._network.compute

    def broken(rows: Any) -> Any:
        values = compute(rows)
        values[[len(row.ids) == 3 for row in rows]] = np.nan
        return values

    monkeypatch.setattr(bench.engine._network, "compute", broken)
    good, bad = bench.submit({}, text=["a b"]), bench.submit({}, text=["x"])
    assert len(good.get(timeout=60)) == 1
    assert "is not a number" in str(bad.get(timeout=60))


def test_a_full_queue_and_too_many_rows_are_refused(tmp_path, serve, monkeypatch) -> None:
    tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed", slots="1", max_queue="2")
    with pytest.raises(
        RequestError, match="the request has 4 rows, but this model holds at most 3"
    ):
        bench.rows(text=["a"] * 4)
    go: queue.Queue[None] = queue.Queue()
    compute = bench.engine._network.compute

    def waiting(rows: Any) -> Any:
        go.get(timeout=60)
        return compute(rows)

    monkeypatch.setattr(bench.engine._network, "compute", waiting)
    first = bench.submit({}, text=["a"] * 3)
    with pytest.raises(OverloadedError, match="the queue is full"):
        bench.rows(text=["a"])
    for _ in range(3):
        go.put(None)
    assert len(first.get(timeout=60)) == 3


def test_batches_hold_texts_of_like_length_within_the_budget(tmp_path, serve, monkeypatch) -> None:
    tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed", batch_tokens="60")
    sizes: list[list[int]] = []
    compute = bench.engine._network.compute

    def noting(rows: Any) -> Any:
        sizes.append([len(row.ids) for row in rows])
        return compute(rows)

    monkeypatch.setattr(bench.engine._network, "compute", noting)
    bench.values(text=["a" * 40, "b", "c" * 9, "d", "e" * 10, "f" * 40] * 4)
    assert sorted(size for batch in sizes for size in batch) == sorted([42, 3, 11, 3, 12, 42] * 4)
    for batch in sizes:
        assert len(batch) == 1 or len(batch) * max(batch) <= 60
        assert len(batch) * max(batch) <= pooling.MOST_PADDING * sum(batch)
    assert any(len(batch) > 2 for batch in sizes)


def test_only_the_metrics_of_the_task_are_counted(tmp_path, serve) -> None:
    tiny.write_embedder(tmp_path / "model")
    bench = serve(tmp_path / "model", "embed")
    bench.values(text=["a", "b"])
    gauges, counts, observations = bench.metrics.drain()
    names = {key[0] for key in [*gauges, *counts]} | {name for name, _ in observations}
    assert names <= {family.name for family in POOLING_FAMILIES}
    assert counts["triton_hf_requests_finished_total", "stop"] == 2
    assert counts["triton_hf_prompt_tokens_total", None] == 6
