"""Triton's Python backend: the only code that sees `triton_python_backend_utils`.

Tensors and response senders end here. Imports `serving` and what lies below it; nothing imports it
except the `model.py` files. Threads of a model's two processes, and what each may touch:

| process | thread | works on |
|---|---|---|
| M | Triton's own (`execute`) | parses, tokenizes short prompts, calls `submit` |
| M | `tokenize` (2) | tokenizes long prompts, calls `submit` |
| M | `engine` | slots, runner, KV cache; calls the listeners of jobs |
| M | `replies` | sends whole answers to Triton |
| M | `cancel-watch` | asks Triton who has left; cancels tickets |
| M | `metrics` | copies counts to Triton |
| M | `stream-accept`, `stream-read`, `outbox` | the socket: requests in, events out |
| M_stream | Triton's own (`execute`) | writes requests to the socket |
| M_stream | `stream-read`, `stream-send` (4) | events from the socket to Triton |
| M_stream | `watch` | asks Triton who has left; beats the heartbeat |

Any thread may call `Job.cancel`, `Ticket.cancel`, `Engine.submit` and `Metrics`. Only the engine's
thread touches a runner. Lock order: a stream's listener, then the service, then the queue.
"""
