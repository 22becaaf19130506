"""`python3 -m cluster packages|up|hub|down|status|preflight|reset`."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from cluster import binaries, lifecycle, network, node, preflight, services
from cluster.addons import EXTRAS, AddonError

FAILURES = (
    lifecycle.ClusterError,
    binaries.BinariesError,
    network.NetworkError,
    node.NodeError,
    services.ServiceError,
    AddonError,
    RuntimeError,
)


def main() -> int:
    """Run one command; 0 when it did what it says, 1 when it failed, 2 when a part is missing."""
    parser = argparse.ArgumentParser(prog="python3 -m cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="bring the cluster up; go on where a killed run stopped")
    up.add_argument("--hpa-sync", default="15s", help="how often the autoscaler looks")
    up.add_argument("--node-grace", default="20s", help="how long a silent node stays ready")
    up.add_argument(
        "--with",
        dest="extras",
        action="append",
        default=[],
        choices=EXTRAS,
        help="an add-on more; repeat it for several; what is there already stays",
    )
    verbs.add_parser("packages", help="install the Debian packages that are missing")
    verbs.add_parser("down", help="remove the cluster; images and programs stay cached")
    verbs.add_parser("reset", help="down, and remove the images of nodes and registry")
    verbs.add_parser("hub", help="start the mirror of the Hub beside the nodes")
    verbs.add_parser("preflight", help="say what is missing, change nothing")
    shown = verbs.add_parser("status", help="say what runs")
    shown.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # compilers end with us
    try:
        return run(options)
    except FAILURES as error:
        print(f"cluster: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        print("cluster: stopped; `up` goes on from here, `down` removes it", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """Do what one verb says; return the exit code."""
    match options.verb:
        case "up":
            lifecycle.up(
                hpa_sync=options.hpa_sync,
                node_grace=options.node_grace,
                extras=tuple(dict.fromkeys(options.extras)),
            )
        case "down" | "reset":
            lifecycle.down(everything=options.verb == "reset")
        case "packages":
            lifecycle.packages()
        case "hub":
            with lifecycle.step("Hub mirror"):
                services.start_hub()
        case "preflight":
            if found := preflight.faults(make_up=True):
                print("\n".join(f"cluster: {fault}" for fault in found), file=sys.stderr)
                return 2
        case "status":
            state = lifecycle.status()
            if options.json:
                print(json.dumps(state))
            else:
                for name, value in state.items():
                    print(f"{name:<12}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
