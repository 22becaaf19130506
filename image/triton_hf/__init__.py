"""Serves Hugging Face models with NVIDIA Triton's Python backend.

A model in the repository is a `config.pbtxt` and a three-line `model.py` that names one of the
adapters here. The flow goes one way: adapter -> requests -> chat -> engine -> answer.
"""

__version__ = "0.1.0"
