"""`python3 -m tools.hub_mirror --listen ADDR:PORT --root DIR`: run the mirror until stopped.

DIR is filled first: SmolLM2-135M-Instruct as an open repository and as a gated one. `--fill` does
no more than that, for a mirror that will run where there is no network to download from.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from tools.hub_mirror.repositories import GATED_REPOSITORY, GATED_TOKEN, populate
from tools.hub_mirror.server import Faults, HubServer


def main() -> int:
    """Fill the root, serve, and stop on SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="ADDR:PORT")
    parser.add_argument("--root", required=True, type=Path, help="folder of the repositories")
    parser.add_argument("--fill", action="store_true", help="fill the root and do not serve")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    populate(options.root)
    if options.fill:
        return 0
    faults = Faults.parse(os.environ.get("HUB_FAULTS", ""))
    server = HubServer((host, int(port)), options.root, faults)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"hub: {server.url} (gated: {GATED_REPOSITORY}, token {GATED_TOKEN})", file=sys.stderr)
    sys.stderr.flush()
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    server.shutdown()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    sys.exit(main())
