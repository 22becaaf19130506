"""From the bytes of a request to queued jobs, and from events to answers and streams.

Knows the contract of a task and nothing of Triton. Imports `engines` and what lies below it, never
`backend`.
"""
