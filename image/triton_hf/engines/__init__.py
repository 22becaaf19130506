"""Engines: a queue with slots, a task on top (`text`), and one module per engine.

Nothing outside imports an engine's module: `models.registry` names it. Imports `compute`, `store`,
`models` and the ground modules, never `serving` or `backend`.
"""
