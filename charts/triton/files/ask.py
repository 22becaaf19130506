"""`helm test`: each model is ready, answers one question whole and one as a stream of tokens.

Usage: ask.py URL TIMEOUT MODEL...; exit code 1 with one sentence when a model does not. Where
clients need an API key, API_KEY is the key and API_KEY_HEADER the name of its header.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

QUESTION = "Why is the sky blue?"
# What enforces a NetworkPolicy needs a moment to know a new pod, and refuses it until then.
POLICY_SECONDS = 30


def call(path, body=None):
    """Return the text of the answer to one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path} answered {error.code}: {error.read().decode()}") from error
    except OSError as error:
        raise SystemExit(f"{path} cannot be reached at {url}: {error}") from error


def reach(path):
    """Wait until this pod's connections are let through."""
    deadline = time.monotonic() + POLICY_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url + path, timeout=timeout).close()
            return
        except urllib.error.HTTPError:
            return  # it answers; `call` says what is wrong with the answer
        except OSError:
            time.sleep(1)


def ask_whole(model):
    """Ask /infer and return the text of the answer."""
    tensor = {"name": "user_message", "datatype": "BYTES", "shape": [1, 1], "data": [[QUESTION]]}
    body = {"inputs": [tensor], "parameters": {"max_tokens": 16}}
    outputs = json.loads(call(f"/v2/models/{model}/infer", body))["outputs"]
    return next(o["data"][0] for o in outputs if o["name"] == "text_output")


def ask_stream(model):
    """Ask /generate_stream and return the number of events and their text."""
    body = {"user_message": QUESTION, "max_tokens": 16}
    lines = call(f"/v2/models/{model}_stream/generate_stream", body).splitlines()
    events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    for event in events:
        if "error" in event:
            raise SystemExit(f"the stream of {model} broke: {event['error']}")
    return len(events), "".join(event.get("text_output", "") for event in events)


url, timeout = sys.argv[1], float(sys.argv[2])
headers = {}
if "API_KEY" in os.environ:
    headers[os.environ["API_KEY_HEADER"]] = os.environ["API_KEY"]
for name in sys.argv[3:]:
    reach(f"/v2/models/{name}/ready")
    call(f"/v2/models/{name}/ready")
    text = ask_whole(name)
    count, streamed = ask_stream(name)
    if not text or not streamed:
        raise SystemExit(f"{name} answered with an empty text")
    print(f"{name}: ready; answers {text!r}; streams {count} events")
