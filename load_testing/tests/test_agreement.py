"""Two clients that share no code see the same server: ours, and the one of reference_client.py."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import known_server, stream_numbers

USERS, SECONDS, ROUNDS = 4, 10, 3
# An answer takes 1.04 s, so that the end of the load falls into the middle of one: a user who just
# slips in one more would stretch one client's run and not the other's.
TTFT_MS, GAP_MS, TOKENS = 200, 21.5, 40


def theirs(host: str) -> dict[str, float]:
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).with_name("reference_client.py"))),
            *(f"--port={host.rsplit(':', 1)[1]}", "--model=known", f"--users={USERS}"),
            *(f"--seconds={SECONDS}", f"--max-tokens={TOKENS}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.slow  # a benchmark, in turns with its peer
def test_tokens_agree_within_3_percent_and_first_tokens_within_5(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    pairs = []
    with known_server(ttft_ms=TTFT_MS, gap_ms=GAP_MS, tokens=TOKENS) as server:
        for number in range(ROUNDS):  # in turns: what the machine does besides meets both
            ours = stream_numbers(
                tmp_path / str(number), host=server.host, users=USERS, seconds=SECONDS
            )
            pairs.append((ours, theirs(server.host)))
    for name, limit in (("tokens_per_second", 0.03), ("ttft_p50_seconds", 0.05)):
        ratios = [mine[name] / other[name] for mine, other in pairs]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        record_property(f"{name} ratio", f"median {statistics.median(ratios):.3f}, {spread}")
        print(f"{name}: ratio {statistics.median(ratios):.4f} ({spread})")
        assert statistics.median(ratios) == pytest.approx(1, abs=limit), (name, spread)
