"""`/v1/embeddings`, `/v1/rerank`, `/rerank` and `/v1/score`: rows to a model, and answers back."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from triton_openai.catalog import Model
from triton_openai.errors import ApiError
from triton_openai.generation import Caller
from triton_openai.pooling_types import (
    Embedding,
    Rerank,
    Score,
    TeiRerank,
    documents_of,
    embedding_inputs,
    pairs_of,
    texts_of,
)
from triton_openai.triton import Rows, Triton

# Triton requests of one client's request that are on their way together: the next one is there
# when a batch is done.
TOGETHER = 2
_EMBEDDED = {"text": "input", "tokens": "input"}
_RANKED = {"query": "query", "text": "documents"}
_TEI = {"query": "query", "text": "texts"}
_SCORED = {"query": "text_1", "text": "text_2"}

Columns = Mapping[str, Sequence[str]]


async def embeddings(
    triton: Triton, model: Model, request: Embedding, caller: Caller
) -> dict[str, Any]:
    """Return the answer of `/v1/embeddings`.

    Raises:
        ApiError: Triton or the model refused or failed.
    """
    tensor, texts = embedding_inputs(request)
    if tensor not in model.inputs:
        raise ApiError(f"The model '{model.name}' takes no token ids.", param="input")
    parameters = _parameters(request, "dimensions", "prompt_name", "truncate")
    found = await _all_rows(triton, model, {tensor: texts}, parameters, caller, names=_EMBEDDED)
    shown = _base64 if request.encoding_format == "base64" else _floats
    tokens = int(found["prompt_tokens"].sum())
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": shown(row)}
            for index, row in enumerate(found["embedding"])
        ],
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def rerank(triton: Triton, model: Model, request: Rerank, caller: Caller) -> dict[str, Any]:
    """Return the answer of `/v1/rerank`, the best document first.

    Raises:
        ApiError: Triton or the model refused or failed.
    """
    documents = documents_of(request)
    columns = {"query": [request.query] * len(documents), "text": documents}
    found = await _all_rows(
        triton, model, columns, _parameters(request, "truncate"), caller, names=_RANKED
    )
    results = []
    for index in _best_first(found["score"])[: request.top_n]:
        result: dict[str, Any] = {
            "index": index,
            "relevance_score": float(found["score"][index, 0]),
        }
        if request.return_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    tokens = int(found["prompt_tokens"].sum())
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": model.name,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def tei_rerank(
    triton: Triton, model: Model, request: TeiRerank, caller: Caller
) -> list[dict[str, Any]]:
    """Return the answer of `/rerank`, the best text first.

    Raises:
        ApiError: Triton or the model refused or failed.
    """
    texts = texts_of(request)
    columns = {"query": [request.query] * len(texts), "text": texts}
    parameters = _parameters(request, "truncate", "raw_scores")
    found = await _all_rows(triton, model, columns, parameters, caller, names=_TEI)
    ranks = []
    for index in _best_first(found["score"]):
        rank: dict[str, Any] = {"index": index, "score": float(found["score"][index, 0])}
        if request.return_text:
            rank["text"] = texts[index]
        ranks.append(rank)
    return ranks


async def score(triton: Triton, model: Model, request: Score, caller: Caller) -> dict[str, Any]:
    """Return the answer of `/v1/score`, in the order of the pairs.

    Raises:
        ApiError: Triton or the model refused or failed.
    """
    first, second = pairs_of(request)
    found = await _all_rows(
        triton,
        model,
        {"query": first, "text": second},
        _parameters(request, "truncate"),
        caller,
        names=_SCORED,
    )
    tokens = int(found["prompt_tokens"].sum())
    return {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model.name,
        "data": [
            {"index": index, "object": "score", "score": float(value)}
            for index, value in enumerate(found["score"][:, 0])
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


async def _all_rows(
    triton: Triton,
    model: Model,
    columns: Columns,
    parameters: Mapping[str, Any],
    caller: Caller,
    *,
    names: Mapping[str, str],
) -> dict[str, Any]:
    """Ask for all rows, in as many Triton requests as its batch size needs; the outputs by name.

    The first error cancels the requests that are still open.
    """
    count = len(next(iter(columns.values())))
    gate = asyncio.Semaphore(TOGETHER)

    async def ask(start: int) -> Mapping[str, Any]:
        part = slice(start, start + model.rows)
        rows = Rows(
            model=model.name,
            columns={name: list(texts[part]) for name, texts in columns.items()},
            parameters=parameters,
            request_id=caller.request_id,
            trace=caller.trace,
        )
        async with gate:
            return await triton.rows(rows)

    tasks = [asyncio.create_task(ask(start)) for start in range(0, count, model.rows)]
    try:
        parts = await asyncio.gather(*tasks)
    except ApiError as error:
        raise _renamed(error, names) from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """Return an error that names the client's field instead of the tensor."""
    sent = names.get(error.param or "")
    if sent is None:
        return error
    return ApiError(
        str(error).replace(f"input '{error.param}'", f"'{sent}'"),
        status=error.status,
        kind=error.kind,
        param=sent,
        code=error.code,
        retry_after=error.retry_after,
    )


def _parameters(request: Any, *names: str) -> dict[str, Any]:
    """Return the request parameters for Triton: what the client said."""
    values = {name: getattr(request, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _best_first(scores: Any) -> list[int]:
    return [int(index) for index in np.argsort(-scores[:, 0], kind="stable")]


def _floats(row: Any) -> list[float]:
    return [float(value) for value in row]


def _base64(row: Any) -> str:
    return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode()
