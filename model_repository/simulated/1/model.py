"""Serves the model that config.pbtxt names."""

from triton_hf.backend.text_model import TextModel as TritonPythonModel  # noqa: F401
