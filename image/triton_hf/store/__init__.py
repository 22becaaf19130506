"""The model store: the sync Job fills it, servers read it.

Imports `models` and the ground modules, never `engines` or `compute`.
"""
