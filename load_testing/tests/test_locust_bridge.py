"""Each name of Locust and gevent that is replaced or read still does what it is replaced for.

Where one of these fails after an upgrade, `locust_bridge` is to be mended, and nothing else. Each
runs in a process of its own: Locust changes the one that imports it.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib.locust_runs import LOCUST, environment
from tools.place import ROOT

BRIDGE = ROOT / "load_testing/triton_load/locust_bridge.py"

PROBE = """
import atexit, sys, time
sys.path.insert(0, {package!r})
from locust import User, events, task
from triton_load import locust_bridge

atexit.register(print, "atexit", flush=True)


class Idle(User):
    @task
    def wait(self):
        time.sleep(0.1)


@events.init.add_listener
def prepare(environment, runner, **_):
    def crash():
        print("bridge: handled", flush=True)
        locust_bridge.leave(7)

    locust_bridge.before_start(runner, lambda: print("bridge: before start", flush=True))
    locust_bridge.before_quit(runner, lambda: print("bridge: before quit", flush=True))
    locust_bridge.on_crash(crash)


@events.test_start.add_listener
def begun(**_):
    print("test_start", flush=True)


@events.quit.add_listener
def end(**_):
    print("quit", flush=True)
"""


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A run that Locust cannot end well: the file that it writes last is in a file's place."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE.format(package=str(ROOT / "load_testing")))
    (folder / "file").touch()
    words = ["-f", str(folder / "probe.py"), "--headless", "-t2s", "--only-summary"]
    words.append(f"--html={folder}/file/report.html")
    return subprocess.run(
        [LOCUST, *words], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def said(probed: subprocess.CompletedProcess[str]) -> list[str]:
    return probed.stdout.split("\n")


def test_runner_start_is_looked_up_on_the_runner_before_the_test_starts(
    probed: subprocess.CompletedProcess[str],
) -> None:
    lines = said(probed)
    assert lines.count("bridge: before start") == 1, probed.stdout + probed.stderr
    assert lines.index("bridge: before start") < lines.index("test_start")


def test_runner_quit_is_looked_up_on_the_runner_at_the_end_of_the_run_time(
    probed: subprocess.CompletedProcess[str],
) -> None:
    lines = said(probed)
    assert "bridge: before quit" in lines, probed.stdout + probed.stderr
    assert lines.index("test_start") < lines.index("bridge: before quit")


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may import what the image holds."""
    begin = f"import sys\nsys.path.insert(0, {str(ROOT / 'load_testing')!r})\n"
    return subprocess.run(
        [sys.executable, "-c", begin + program, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


VERSIONS = """
from triton_load import locust_bridge
for pair in locust_bridge.READ_AT.items():
    print(*pair)
"""


def test_the_image_holds_the_versions_that_were_read() -> None:
    text = (ROOT / "load_testing/requirements.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE))
    done = run(VERSIONS)
    known = dict(line.split() for line in done.stdout.splitlines())
    assert set(known) == {"locust", "gevent"}, done.stderr
    for name, version in known.items():
        assert pinned[name] == importlib.metadata.version(name) == version, name


CHECKS = """
from argparse import ArgumentTypeError
from locust import argument_parser
from triton_load import locust_bridge
def refuse(text):
    raise ArgumentTypeError(f"not {text}")
parser = argument_parser.get_parser()
for option in ("--csv", "--html", "--json-file"):
    locust_bridge.check_option(parser, option, lambda text: text.upper())
found = parser.parse_args(["--csv=a", "--html=b", "--json-file=c"])
print(found.csv_prefix, found.html_file, found.json_file)
locust_bridge.check_option(parser, "--csv", refuse)
parser.parse_args(["--csv=here"])
"""


def test_the_parser_reads_locusts_own_options_by_our_checks() -> None:
    done = run(CHECKS)
    assert done.stdout.split() == ["A", "B", "C"], done.stderr
    assert done.returncode == 2
    assert done.stderr.endswith("error: argument --csv: not here\n")


QUITS = """
from locust.env import Environment
from triton_load import locust_bridge
runner = Environment(user_classes=[]).create_local_runner()
quit_now = locust_bridge.before_quit(runner, lambda: print("before"))
quit_now()
print("skipped")
runner.quit()
"""


def test_the_quit_that_is_returned_skips_what_was_put_before_it() -> None:
    done = run(QUITS)
    assert done.stdout.split() == ["skipped", "before"], done.stderr


def test_an_exception_that_ends_locust_reaches_the_excepthook(
    probed: subprocess.CompletedProcess[str],
) -> None:
    assert "FileExistsError" in probed.stderr
    assert "bridge: handled" in said(probed), probed.stdout + probed.stderr
    assert probed.returncode == 7


LEAVES = """
import gevent
from triton_load import locust_bridge
print("kept", end="")
gevent.spawn(locust_bridge.leave, 5)
gevent.sleep(60)
"""


def test_leave_ends_the_process_at_once_and_keeps_what_was_printed(
    probed: subprocess.CompletedProcess[str],
) -> None:
    assert "atexit" not in said(probed)
    done = run(LEAVES)
    assert (done.returncode, done.stdout) == (5, "kept"), done.stderr


CLOSES = """
import gevent
from locust.env import Environment
from locust.stats import StatsCSVFileWriter
from triton_load import locust_bridge
if sys.argv[2] == "bridged":
    locust_bridge.end_csv_quietly()
environment = Environment(user_classes=[])
environment.create_local_runner()
writer = StatsCSVFileWriter(environment, [0.5], sys.argv[1])
writing = gevent.spawn(writer.stats_writer)
gevent.sleep(0.2)
writer.close_files()
writing.join(timeout=20)
print(writing.ready(), type(writing.exception).__name__)
"""


@pytest.mark.parametrize(("how", "fault"), [("plain", "ValueError"), ("bridged", "NoneType")])
def test_the_csv_writer_ends_quietly_when_its_files_are_closed(
    tmp_path: Path, how: str, fault: str
) -> None:
    done = run(CLOSES, str(tmp_path / "x"), how)
    assert done.stdout.split() == ["True", fault], done.stderr
    assert (tmp_path / "x_stats.csv").read_text().startswith("Type,Name")


FAILS = """
from locust.env import Environment
from locust.stats import StatsCSVFileWriter
from triton_load import locust_bridge
def fail(self):
    raise ValueError("something else")
StatsCSVFileWriter.stats_writer = fail
locust_bridge.end_csv_quietly()
StatsCSVFileWriter(Environment(user_classes=[]), [0.5], sys.argv[1]).stats_writer()
"""


def test_another_fault_of_the_csv_writer_is_not_hidden(tmp_path: Path) -> None:
    done = run(FAILS, str(tmp_path / "x"))
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: something else\n")


RESOLVES = """
from gevent import monkey
monkey.patch_all()
import socket
import gevent
from triton_load import locust_bridge
class Asked:
    def __init__(self, other):
        self.other = other
    def getaddrinfo(self, *words, **named):
        print("asked", words[0])
        return self.other.getaddrinfo(*words, **named)
locust_bridge.wrap_resolver(Asked)
locust_bridge.wrap_resolver(Asked)
print(isinstance(gevent.get_hub().resolver.other, Asked))
socket.getaddrinfo("localhost", 80)
"""


def test_gevent_asks_the_resolver_of_its_hub() -> None:
    done = run(RESOLVES)
    assert done.stdout.split() == ["False", "asked", "localhost"], done.stdout + done.stderr


STOPS = """
import gevent
from gevent.pool import Group
from locust import User, constant, task
from locust.env import Environment
from triton_load import locust_bridge
class Slow(User):
    wait_time = constant(0)
    @task
    def ask(self):
        print(locust_bridge.is_stopping(self))
        gevent.sleep(0.5)
        print(locust_bridge.is_stopping(self))
user, group = Slow(Environment(user_classes=[Slow], stop_timeout=5)), Group()
user.start(group)
gevent.sleep(0.1)
user.stop(force=False)
group.join(timeout=10)
"""


def test_a_user_that_is_stopped_gently_notes_it_in_its_state() -> None:
    done = run(STOPS)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_the_bridge_is_the_only_one_who_reaches_that_far() -> None:
    inside = re.compile(
        r"\bos\._exit|sys\.excepthook|\.resolver = |stats_writer\b|\._state\b"
        r"|\.(?:start|quit) = |# type: ignore\[method-assign\]|_option_string_actions"
    )
    found = {
        file.name
        for file in BRIDGE.parent.rglob("*.py")
        if inside.search(file.read_text(encoding="utf-8"))
    }
    assert found == {BRIDGE.name}
