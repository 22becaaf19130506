"""The options that this package adds to Locust's command line."""

from __future__ import annotations

import dataclasses
import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_load import locust_bridge
from triton_load.arrivals import ARRIVALS, SHAPES, Profile
from triton_load.clients import CLIENTS
from triton_load.errors import LoadTestError

EXAMPLE = Path(__file__).parents[1] / "example/data_llama.json"
DEFAULT_LAG_MS = 20.0


def add_arguments(parser: ArgumentParser) -> None:
    """Add our options to Locust's parser, and let it check where its own files shall be written."""
    locust_bridge.check_option(parser, "--csv", _prefix)
    locust_bridge.check_option(parser, "--html", _file)
    locust_bridge.check_option(parser, "--json-file", lambda text: _file(f"{text}.json") and text)
    group = parser.add_argument_group("Triton", "what is sent, how load arrives, what is expected")

    def add(name: str, **words: Any) -> None:
        group.add_argument(name, **words)  # of a group: not shown in the web UI

    add("--data", metavar="FILE", default="", help="JSON with the input data; see README")
    add("--schema", metavar="FILE", default="", help="config.pbtxt to check the data against")
    add("--model", metavar="NAME", default="", help="model to ask; default: the schema's name")
    add("--client", choices=CLIENTS, default="", help="whole, stream, gRPC or OpenAI's API")
    add("--grpc-host", metavar="HOST:PORT", default="", help="gRPC address for --client grpc")
    add("--rate", type=_above_zero, default=0.0, help="open loop: requests/s in all, at any cost")
    add("--arrival", choices=ARRIVALS, default="poisson", help="spacing of arrivals of --rate")
    add("--shape", choices=SHAPES, default="constant", help="load over the --run-time")
    add("--peak", type=_above_zero, default=0.0, help="highest users or rate of a --shape")
    add("--steps", type=int, default=4, help="plateaus of --shape step")
    add("--think-time", type=_from_zero, default=0.0, help="pause of a user, seconds")
    add("--max-in-flight", type=int, default=2000, help="open requests of a worker at --rate")
    add("--request-timeout", type=_above_zero, default=600.0, help="longest silence, seconds")
    add("--wait", type=_from_zero, default=0.0, help="for a server that is silent, seconds")
    add("--keep-alive", action="store_true", help="reuse connections; default: one a request")
    add("--insecure", action="store_true", help="accept any TLS certificate")
    add("--header", action="append", default=[], metavar="'NAME: VALUE'", help="sent with each")
    add("--prompt-tokens", type=_whole, default=0, help="make prompts of this length, no --data")
    add("--max-tokens", type=_whole, default=0, help="longest answer, over what the data say")
    add("--temperature", type=_from_zero, default=None, help="over what the data say")
    add("--ignore-eos", action="store_true", help="answers of exactly --max-tokens")
    add("--seed", type=int, default=0, help="makes choices of cases and arrivals repeatable")
    add("--objectives", metavar="FILE", default="", help="YAML with what a good server does")
    add("--max-lag", type=_above_zero, default=DEFAULT_LAG_MS, help="late generator, p95 in ms")
    add(
        "--out",
        type=_folder,
        metavar="DIR",
        default="",
        help="where run.json and the report are written",
    )
    add("--run-name", metavar="NAME", default="", help="name of the run in its report")
    add("--exporter-port", type=int, default=0, help="serve the numbers for Prometheus here")
    add("--replicas-host", metavar="NAME", default="", help="headless Service to count servers by")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Our options, typed, and the ones of Locust that they depend on. Durations are seconds."""

    host: str
    data: str
    schema: str
    model: str
    client: str
    grpc_host: str
    rate: float
    arrival: str
    shape: str
    peak: float
    steps: int
    think_time: float
    max_in_flight: int
    request_timeout: float
    wait: float
    keep_alive: bool
    insecure: bool
    headers: Mapping[str, str]
    prompt_tokens: int
    parameters: Mapping[str, Any]
    seed: int
    objectives: str
    max_lag: float
    out: str
    run_name: str
    exporter_port: int
    replicas_host: str
    users: int
    run_time: float

    @property
    def open_loop(self) -> bool:
        """Whether requests arrive at a rate, whatever the server does."""
        return self.rate > 0

    def profile(self) -> Profile:
        """Load over time.

        Raises:
            LoadTestError: The options about it do not agree.
        """
        return Profile(
            shape=self.shape,
            base=self.rate if self.open_loop else float(self.users),
            peak=self.peak,
            duration=self.run_time,
            steps=self.steps,
        )


def read(parsed: Namespace) -> Options:
    """Read what the parser found.

    Raises:
        LoadTestError: Options exclude each other, or there is no host.
    """
    if not parsed.host:
        raise LoadTestError("--host is missing: the server's URL, for example http://localhost")
    if parsed.data and parsed.prompt_tokens:
        raise LoadTestError("--data and --prompt-tokens exclude each other; give one")
    if parsed.ignore_eos and not parsed.max_tokens:
        raise LoadTestError("--ignore-eos needs --max-tokens: such an answer has no other end")
    if named := [name for name in ("tags", "exclude_tags") if getattr(parsed, name, None)]:
        option = f"--{named[0].replace('_', '-')}"
        raise LoadTestError(f"{option} chooses among tasks, and a load test has one; leave it out")
    parameters: dict[str, Any] = {}
    if parsed.max_tokens:
        parameters["max_tokens"] = parsed.max_tokens
    if parsed.temperature is not None:
        parameters["temperature"] = parsed.temperature
    if parsed.ignore_eos:
        parameters["ignore_eos"] = True
    own = {
        field.name: getattr(parsed, field.name)
        for field in dataclasses.fields(Options)
        if hasattr(parsed, field.name)
    }
    return Options(
        **own
        | {
            "headers": dict(_header(text) for text in parsed.header),
            "parameters": parameters,
            "max_lag": parsed.max_lag / 1000,
            "users": parsed.num_users or 1,
            "run_time": float(parsed.run_time or 0),
        }
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise LoadTestError(f"--header must be 'NAME: VALUE', not '{text}'")
    return name.strip(), value.strip()


def _folder(text: str) -> str:
    """A folder that can be written to, whether it is there already or not."""
    place = Path(text or ".").absolute()
    while not place.exists():
        place = place.parent
    try:
        if text:
            tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ArgumentTypeError(f"{place} is no folder that can be written to") from error
    return text


def _file(text: str) -> str:
    """A file that can be written, whether it is there already or not."""
    place = Path(text).absolute()
    try:
        if place.exists():
            place.open("a").close()
    except OSError as error:
        raise ArgumentTypeError(f"{place} is no file that can be written") from error
    _folder(str(place.parent))
    return text


def _prefix(text: str) -> str:
    """What Locust's CSV files begin with."""
    for end in ("stats", "stats_history", "failures", "exceptions"):
        _file(f"{text}_{end}.csv")
    return text


def _above_zero(text: str) -> float:
    value = _from_zero(text)
    if value <= 0:
        raise ArgumentTypeError(f"must be above 0, not {text}")
    return value


def _from_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"must be a number, not '{text}'") from error
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"must not be below 0, not {text}")
    return value


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"must be a whole number above 0, not '{text}'")
    return int(text)
