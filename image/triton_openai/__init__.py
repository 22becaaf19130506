"""OpenAI's API for the models of a Triton: a process beside it that speaks gRPC to it.

What belongs here: HTTP, OpenAI's request and answer shapes, and their translation into the tensors
and parameters of a text model. What a model can do is the model's own business: it validates.
Modules, each using only those before it: errors, fields, types, triton, catalog, generation,
chat and completions, sse, app, server.
"""
