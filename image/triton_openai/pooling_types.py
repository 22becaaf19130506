"""Requests for embeddings, ranking and scores: OpenAI's, Cohere's, TEI's and vLLM's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from triton_openai.errors import ApiError
from triton_openai.fields import Fields
from triton_openai.types import Strict, Whole, converted, decoded

MAX_TEXTS = 2048
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Embedding(Strict, frozen=True, kw_only=True):
    """`POST /v1/embeddings`; `prompt_name` and `truncate` are TEI's."""

    model: str
    input: str | list[str | Whole | list[Whole]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    prompt_name: str | None = None
    truncate: bool | None = None


class Rerank(Strict, frozen=True, kw_only=True):
    """`POST /v1/rerank` and `/v2/rerank`, as Cohere and Jina have it."""

    model: str
    query: str
    documents: list[str | dict[str, Any]]
    top_n: Count | None = None
    return_documents: bool = False
    truncate: bool | None = None


class TeiRerank(Strict, frozen=True, kw_only=True):
    """`POST /rerank`, as TEI has it; `model` is needed when there are several rankers."""

    query: str
    texts: list[str]
    model: str | None = None
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class Score(Strict, frozen=True, kw_only=True):
    """`POST /v1/score`, as vLLM has it: one text against many, or pairs."""

    model: str
    text_1: str | list[str]
    text_2: str | list[str]
    truncate: bool | None = None


Request = TypeVar("Request", Embedding, Rerank, TeiRerank, Score)

_NOT_DONE: Mapping[type[Any], Mapping[str, tuple[Any, ...]]] = {
    Embedding: {"input_type": ()},
    Rerank: {"max_chunks_per_doc": (), "max_tokens_per_doc": (), "rank_fields": ()},
    TeiRerank: {"truncation_direction": ("right", "Right")},
    Score: {},
}
_FIELDS = {
    kind: Fields(done=frozenset(kind.__struct_fields__), not_done=not_done)
    for kind, not_done in _NOT_DONE.items()
}


def read_pooling(body: bytes, kind: type[Request]) -> Request:
    """Read the body of a request.

    Raises:
        ApiError: It is not JSON, or a field is missing, unknown, not done or of the wrong type.
    """
    return converted(_FIELDS[kind].kept(decoded(body)), kind)


def embedding_inputs(request: Embedding) -> tuple[str, list[str]]:
    """Return the input tensor of an embedding request, and its rows.

    Token ids go into `tokens`, each row as a JSON list.

    Raises:
        ApiError: The list is empty, too long, or holds texts and token ids.
    """
    given = request.input
    items: list[Any] = [given] if isinstance(given, str) else given
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    _check_count("input", items)
    if all(isinstance(item, str) for item in items):
        return "text", items
    if all(isinstance(item, list) for item in items):
        return "tokens", [msgspec.json.encode(item).decode() for item in items]
    raise ApiError(
        "'input' must be a string, a list of strings, a list of token ids or a list of those.",
        param="input",
        code="invalid_type",
    )


def documents_of(request: Rerank) -> list[str]:
    """Return the texts of the documents.

    Raises:
        ApiError: There are none or too many, or one has other fields than `text`.
    """
    _check_count("documents", request.documents)
    return [_document(index, item) for index, item in enumerate(request.documents)]


def _document(index: int, item: Any) -> str:
    if isinstance(item, str):
        return item
    if set(item) != {"text"} or not isinstance(item["text"], str):
        path = f"documents[{index}]"
        raise ApiError(f"'{path}' must be a string or an object with a 'text'.", param=path)
    return str(item["text"])


def pairs_of(request: Score) -> tuple[list[str], list[str]]:
    """Return both columns of the pairs; one text stands for as many as the other column has.

    Raises:
        ApiError: A column is empty or too long, or their lengths differ.
    """
    first, second = (
        [given] if isinstance(given, str) else given for given in (request.text_1, request.text_2)
    )
    _check_count("text_1", first)
    _check_count("text_2", second)
    if isinstance(request.text_1, str):
        first = first * len(second)
    if isinstance(request.text_2, str):
        second = second * len(first)
    if len(first) != len(second):
        raise ApiError(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}; send as many, or one "
            "text as a string.",
            param="text_2",
        )
    return first, second


def texts_of(request: TeiRerank) -> list[str]:
    """Return the texts to rank.

    Raises:
        ApiError: There are none, or too many.
    """
    _check_count("texts", request.texts)
    return request.texts


def _check_count(name: str, items: list[Any]) -> None:
    if not 1 <= len(items) <= MAX_TEXTS:
        raise ApiError(
            f"'{name}' must have 1 to {MAX_TEXTS} entries, got {len(items)}.",
            param=name,
            code="invalid_value",
        )
