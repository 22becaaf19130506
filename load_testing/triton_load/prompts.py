"""Prompts of a given length, each different, so that no cache of prefixes answers for the model."""

from __future__ import annotations

import random

from triton_load.data import Case
from triton_load.errors import LoadTestError
from triton_load.schema import Model

# Words that are one token each, with a leading space or without, in the vocabularies of common
# models.
_TEXT = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea body information back parent face others level
office door health person art war history party result change reason research girl
moment air teacher force education
"""
_WORDS = _TEXT.split()


def generated(length: int, *, model: Model, source: random.Random) -> Case:
    """A case whose user message has about `length` tokens: that many common words.

    The chat template comes on top; reports show the length that the server counted.

    Raises:
        LoadTestError: The model takes no text.
    """
    if not model.is_text_model:
        raise LoadTestError(f"--prompt-tokens needs a text model; {model.name} takes no text")
    text = " ".join(source.choices(_WORDS, k=length))
    tensor = {"name": "user_message", "datatype": "BYTES", "shape": [1, 1], "data": [[text]]}
    return Case(name=f"{length} tokens", weight=1.0, inputs=(tensor,), parameters={})
