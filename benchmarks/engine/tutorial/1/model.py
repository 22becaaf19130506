"""What tutorials show: load with transformers, `generate` in `execute`, one request at a time."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from transformers import AutoModelForCausalLM, AutoTokenizer


class TritonPythonModel:
    """The model in the folder `MODEL_FOLDER`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load it."""
        folder = os.environ["MODEL_FOLDER"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer one request after the other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        system, user = (_text(request, name) for name in ("system_message", "user_message"))
        tokens = int(json.loads(request.parameters())["max_tokens"])
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "system", "content": system}, {"role": "user", "content": user}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        read = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            made = self.model.generate(
                **inputs, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0, read:]
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([[text.encode()]], dtype=np.object_)),
                pb_utils.Tensor("prompt_tokens", np.array([[read]], dtype=np.int32)),
                pb_utils.Tensor("completion_tokens", np.array([[len(made)]], dtype=np.int32)),
            ]
        )


def _text(request: Any, name: str) -> str:
    array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return str(array.reshape(-1)[0].decode())
