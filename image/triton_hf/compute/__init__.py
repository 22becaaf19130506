"""One forward pass of a model: the native CPU kernels, and torch as the reference.

Knows rows, sequences and tensors, and no request. Imports `models` and the ground modules, never
`engines`.
"""
