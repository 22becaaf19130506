"""Serves the model that config.pbtxt names."""

from triton_hf.adapter import TextModel as TritonPythonModel  # noqa: F401
