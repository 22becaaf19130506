"""Embeddings, reranking and scores over HTTP, by the clients of OpenAI, LangChain and Cohere."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import cohere
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from lib import pooling_models as tiny
from lib.openai_server import Api, running_api
from lib.pooling_models import Pooled

TEXTS = [text for text in tiny.TEXTS if "[" not in text]
QUERY = "what is it"


@pytest.fixture(scope="module")
def api(pooled: Pooled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(grpc_port=pooled.client.server.ports.grpc, workdir=folder) as running:
        yield running


def embed(api: Api, **fields: Any) -> Any:
    return api.client().embeddings.create(**{"model": "embedder", **fields})


def vectors(answer: Any) -> Any:
    return np.array([one.embedding for one in answer.data])


def post(api: Api, path: str, body: Any) -> tuple[int, Any]:
    """POST below the root; `Api.post` does so below /v1."""
    url = f"http://127.0.0.1:{api.port}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# Embeddings.


def test_openais_client_gets_the_embeddings_of_sentence_transformers(api, pooled) -> None:
    expected = pooled.embedder.encode(TEXTS)
    answer = embed(api, input=TEXTS)  # asks for base64 by itself
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)
    assert [one.index for one in answer.data] == list(range(len(TEXTS)))
    assert answer.model == "embedder"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens
    assert answer.usage.total_tokens == sum(len(tiny.tokenizer()(t)["input_ids"]) for t in TEXTS)
    as_floats = embed(api, input=TEXTS, encoding_format="float")
    np.testing.assert_allclose(vectors(as_floats), vectors(answer), atol=1e-6)
    np.testing.assert_allclose(vectors(embed(api, input=TEXTS[0])), expected[:1], atol=1e-5)


def test_base64_is_float32_in_little_endian(api) -> None:
    body = {"model": "embedder", "input": "a b", "encoding_format": "base64"}
    status, raw, _ = api.post("/embeddings", body)
    assert status == 200
    made = np.frombuffer(base64.b64decode(json.loads(raw)["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_allclose(made, vectors(embed(api, input="a b"))[0], atol=1e-6)


def test_token_ids_are_an_input(api) -> None:
    ids = tiny.tokenizer()(TEXTS[0])["input_ids"]
    expected = vectors(embed(api, input=TEXTS[0]))
    np.testing.assert_allclose(vectors(embed(api, input=ids)), expected, atol=1e-6)
    both = vectors(embed(api, input=[ids, ids]))
    np.testing.assert_allclose(both, np.concatenate([expected] * 2), atol=1e-6)


def test_dimensions_and_prompts_count(api, pooled) -> None:
    assert vectors(embed(api, input="a", dimensions=8)).shape == (1, 8)
    found = embed(api, input="a b", extra_body={"prompt_name": "query"})
    expected = pooled.embedder.encode(["a b"], prompt_name="query")
    np.testing.assert_allclose(vectors(found), expected, atol=1e-5)


def test_more_inputs_than_a_batch_of_triton_come_back_in_order(api) -> None:
    texts = [f"text {number}" for number in range(200)]
    found = vectors(embed(api, input=texts))
    for number in (0, 63, 64, 199):
        np.testing.assert_allclose(
            found[number], vectors(embed(api, input=texts[number]))[0], atol=1e-5
        )


def test_langchain_embeds(api, pooled) -> None:
    model = OpenAIEmbeddings(
        model="embedder", base_url=api.url, api_key="none", check_embedding_ctx_length=False
    )
    expected = pooled.embedder.encode(TEXTS[:2])
    np.testing.assert_allclose(model.embed_documents(TEXTS[:2]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": []}, "input", "must have 1 to 2048 entries, got 0"),
        ({"input": ["a"] * 2049}, "input", "got 2049"),
        ({"input": ["a", 3]}, "input", "must be a string, a list of strings"),
        ({"input": " "}, "input", "'input' is empty"),
        ({"input": ["a", ""]}, "input", "'input' is empty"),
        ({"input": "a " * 99}, None, "this model takes at most 64"),
        ({"input": [9999]}, "input", "'input' holds 9999"),
        ({"input": "a", "dimensions": 7}, "dimensions", "must be one of 8"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid enum value"),
        ({"input": "a", "extra_body": {"input_type": "query"}}, "input_type", "not supported"),
        ({"input": "a", "extra_body": {"normalise": True}}, "normalise", "Unknown field"),
        ({"input": "a", "extra_body": {"prompt_name": "x"}}, "prompt_name", "must be one of"),
        ({"input": "a", "model": "ranker"}, "model", "is for the task 'rank'; use /v1/rerank"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_the_field(api, fields, param, words) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        embed(api, **fields)
    assert words in caught.value.message
    assert caught.value.param == param


def test_a_chat_with_an_embedding_model_says_where_it_is_served(api) -> None:
    with pytest.raises(openai.BadRequestError, match=r"task 'embed'; use /v1/embeddings"):
        api.client().chat.completions.create(
            model="embedder", messages=[{"role": "user", "content": "a"}]
        )
    with pytest.raises(openai.NotFoundError):
        embed(api, model="nobody", input="a")


def test_models_lists_every_task(api) -> None:
    cards = {one.id: one.model_dump() for one in api.client().models.list()}
    assert {name: card["task"] for name, card in cards.items()} == {
        "embedder": "embed",
        "ranker": "rank",
        "classifier": "classify",
    }
    assert api.client().models.retrieve("ranker").id == "ranker"


# Reranking and scores.


def expected_scores(pooled: Pooled) -> Any:
    return pooled.ranker.predict([(QUERY, text) for text in TEXTS])


@pytest.mark.parametrize("version", [cohere.Client, cohere.ClientV2])
def test_coheres_client_ranks(api, pooled, version) -> None:
    client = version("none", base_url=f"http://127.0.0.1:{api.port}")
    answer = client.rerank(model="ranker", query=QUERY, documents=TEXTS, top_n=3)
    scores = expected_scores(pooled)
    assert [one.index for one in answer.results] == np.argsort(-scores)[:3].tolist()
    for one in answer.results:
        assert one.relevance_score == pytest.approx(scores[one.index], abs=1e-5)


def test_documents_come_back_on_demand(api) -> None:
    body = {"model": "ranker", "query": QUERY, "documents": [{"text": "a"}, "b"]}
    status, raw, _ = api.post("/rerank", {**body, "return_documents": True})
    assert status == 200
    results = json.loads(raw)["results"]
    assert {one["index"]: one["document"]["text"] for one in results} == {0: "a", 1: "b"}
    assert all("document" not in one for one in json.loads(api.post("/rerank", body)[1])["results"])


def test_rerank_has_teis_form(api, pooled) -> None:
    scores = expected_scores(pooled)
    status, ranks = post(api, "/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    assert status == 200
    assert [one["index"] for one in ranks] == np.argsort(-scores).tolist()
    for one in ranks:
        assert one["score"] == pytest.approx(scores[one["index"]], abs=1e-5)
        assert one["text"] == TEXTS[one["index"]]
    status, raw = post(api, "/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True})
    by_index = {one["index"]: one["score"] for one in raw}
    logits = np.array([by_index[index] for index in range(len(TEXTS))])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-5)


def test_score_pairs_one_text_with_many_and_many_with_many(api, pooled) -> None:
    scores = expected_scores(pooled)
    for first in (QUERY, [QUERY] * len(TEXTS)):
        body = {"model": "ranker", "text_1": first, "text_2": TEXTS}
        status, raw, _ = api.post("/score", body)
        assert status == 200
        data = json.loads(raw)["data"]
        assert [one["index"] for one in data] == list(range(len(TEXTS)))
        np.testing.assert_allclose([one["score"] for one in data], scores, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/rerank", {"query": "a", "documents": []}, "documents", "must have 1 to 2048"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query", "'query' is empty"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0]", "a 'text'"),
        ("/v1/rerank", {"documents": ["a"]}, "query", "'query' is missing"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n", ">= 1"),
        (
            "/v2/rerank",
            {"query": "a", "documents": ["b"], "max_tokens_per_doc": 9},
            "max_tokens_per_doc",
            "not supported",
        ),
        ("/rerank", {"query": "a", "texts": []}, "texts", "must have 1 to 2048"),
        ("/rerank", {"query": "a", "documents": ["b"]}, "documents", "Unknown field"),
        ("/rerank", {"query": "a", "texts": ["b" * 99]}, None, "this model takes at most 64"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2", "send as many"),
        ("/v1/score", {"text_1": "a", "text_2": 3}, "text_2", "is wrong"),
        ("/v1/score", {"model": "embedder", "text_1": "a", "text_2": "b"}, "model", "'embed'"),
    ],
)
def test_a_wrong_ranking_is_a_400_that_names_the_field(api, path, body, param, words) -> None:
    status, answer = post(api, path, {"model": "ranker", **body})
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert words in answer["error"]["message"]


def test_rankings_need_the_key_too(pooled, tmp_path) -> None:
    with running_api(
        grpc_port=pooled.client.server.ports.grpc,
        workdir=tmp_path,
        environment={"TRITON_API_KEY": "secret"},
    ) as guarded:
        for path in ("/rerank", "/v1/rerank", "/v2/rerank", "/v1/embeddings", "/v1/score"):
            assert post(guarded, path, {})[0] == 401, path
        assert embed_with_key(guarded).data[0].index == 0


def embed_with_key(api: Api) -> Any:
    return api.client(key="secret").embeddings.create(model="embedder", input="a")
