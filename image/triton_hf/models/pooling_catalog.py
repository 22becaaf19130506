"""The parameters of the tasks `embed`, `rank` and `classify`; `models.catalog` has the others."""

from __future__ import annotations

from triton_hf.models.catalog import QUEUE
from triton_hf.models.parameters import MAX_TOKENS, Flag, Integer, Parameter, Text, table

# The same names as for text, with what they mean where a request has one forward pass.
BATCHING = table(
    Parameter(
        name="slots",
        kind=Integer(low=1, high=4096),
        default="8; other tasks than text: 64",
        meaning="requests that the engine works on at the same time",
    ),
    Parameter(
        name="max_queue",
        kind=Integer(low=0, high=1_000_000),
        default="64; other tasks than text: 512",
        meaning="requests that may wait; the next one is refused with 503",
    ),
    QUEUE["max_queue_seconds"],
    Parameter(
        name="max_input_tokens",
        kind=Integer(low=1, high=MAX_TOKENS),
        default="as the repository says",
        meaning="`embed`, `rank` and `classify`: longest text in tokens, with the special tokens",
    ),
    Parameter(
        name="batch_tokens",
        kind=Integer(low=1, high=MAX_TOKENS),
        default="2048 on a CPU, 16384 on a GPU",
        meaning="`embed`, `rank` and `classify`: most tokens of one forward pass, padding included",
    ),
)

_TRUNCATE = Parameter(
    name="truncate",
    kind=Flag(),
    default="false",
    request=True,
    meaning="cut a text that is too long, instead of refusing it",
)
_RAW_SCORES = Parameter(
    name="raw_scores",
    kind=Flag(),
    default="false",
    request=True,
    meaning="scores as the model computes them, without the activation of the repository",
)

EMBEDDING = table(
    Parameter(
        name="dimensions",
        kind=Integer(low=1, high=1_000_000),
        default="all",
        request=True,
        meaning="keep so many dimensions of an embedding, of a model with Matryoshka dimensions",
    ),
    Parameter(
        name="matryoshka",
        kind=Flag(),
        default="as the repository says",
        meaning="whether the first dimensions of an embedding are an embedding (Matryoshka)",
    ),
    Parameter(
        name="prompt_name",
        kind=Text(),
        default="as the repository says",
        request=True,
        meaning="put the prompt of this name before the text; the repository has the prompts",
    ),
    _TRUNCATE,
)

RANKING = table(_TRUNCATE, _RAW_SCORES)

CLASSIFYING = table(
    Parameter(
        name="top_labels",
        kind=Integer(low=0, high=1_000_000),
        default="0",
        request=True,
        meaning="return the k best labels; 0 is all",
    ),
    _TRUNCATE,
    _RAW_SCORES,
)
