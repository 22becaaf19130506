"""Around tritonserver: preparing and starting it, and the probes.

Imports `models` and the ground modules, never `engines`, `serving` or `backend`.
"""
