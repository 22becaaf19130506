"""Which fields a request may carry besides those that change the answer.

A field is done, harmless, or refused by its name. A field of OpenAI's API that is not done is
accepted only with the values that ask for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from triton_openai.errors import ApiError

# They change no answer, so ignoring them breaks no promise.
HARMLESS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# Field -> the values that ask for nothing. null asks for nothing in every field.
NOT_DONE_CHAT: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": (),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
NOT_DONE_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "logprobs": (),
    "suffix": ("",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of one kind of request.

    Attributes:
        done: Fields that count.
        not_done: Fields of OpenAI's API that do not, with the values that ask for nothing.
    """

    done: frozenset[str]
    not_done: Mapping[str, tuple[Any, ...]]

    def kept(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that count.

        Raises:
            ApiError: A field is unknown, or asks for something that is not done.
        """
        kept = {}
        for name, value in body.items():
            if name in self.done:
                if value is not None:
                    kept[name] = value
            elif name in self.not_done:
                if value is not None and not _asks_nothing(value, self.not_done[name]):
                    raise ApiError(
                        f"'{name}' is not supported by this server; leave it out.",
                        param=name,
                        code="unsupported_parameter",
                    )
            elif name not in HARMLESS:
                raise ApiError(
                    f"Unknown field '{name:.60}'.", param=f"{name:.60}", code="unknown_parameter"
                )
        return kept


def _asks_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    # 0 == False in Python, and they are not the same request.
    return any(type(value) is type(item) and value == item for item in neutral)
