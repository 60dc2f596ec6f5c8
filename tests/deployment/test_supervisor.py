"""The supervisor: processes are started again with growing pauses, and all end with it."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from fedlearn.deployment import supervisor
from fedlearn.deployment.supervisor import LONGEST_S, SHORTEST_S, STEADY_S, Child, GivenUpError

PYTHON = [sys.executable, "-S", "-c"]
SLEEPS = [*PYTHON, "import time; time.sleep(600)"]
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


class EnoughError(Exception):
    """Ends a supervisor from within."""


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - it may be gone by then
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def none_left(children):
    return all(child.process is None or child.process.poll() is not None for child in children)


def supervise_for(children, seconds, say=lambda line: None):
    """Supervise for a while."""
    end = time.monotonic() + seconds

    def once():
        if time.monotonic() > end:
            raise EnoughError
        return False

    with pytest.raises(EnoughError):
        supervisor.supervise(children, say, once)


# --- starting again -----------------------------------------------------------------------------


class Process:
    """A process that ends when told."""

    def __init__(self):
        self.returncode = None

    def poll(self):
        return self.returncode


@pytest.fixture
def looked_after(tmp_path, monkeypatch):
    """A child without a process, in a time that goes on when told."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: clock.now))
    said = []

    class Started(Child):
        starts = 0

        def start(self):
            self.starts += 1
            self.process, self.started = Process(), clock.now

    child = Started("sleeper", ["x"], tmp_path / "log")
    child.log.write_text("")

    def wait(seconds):
        """Go on in small steps."""
        end = clock.now + seconds
        while clock.now < end:
            supervisor._look_after(child, said.append)
            clock.now += 0.1

    child.start()
    return SimpleNamespace(child=child, clock=clock, said=said, wait=wait)


def pause_after_an_end(case, code=1):
    """Have the child end; return the seconds until it is started again."""
    starts, case.child.process.returncode = case.child.starts, code
    begun = case.clock.now
    while case.child.starts == starts:
        case.wait(0.1)
    return case.clock.now - begun


def test_pauses_grow_while_a_child_keeps_ending(looked_after):
    pauses = [pause_after_an_end(looked_after) for _ in range(7)]
    expected = [min(SHORTEST_S * 2**times, LONGEST_S) for times in range(7)]
    assert pauses == pytest.approx(expected, abs=0.5)
    assert len(looked_after.said) == 7
    assert looked_after.child.name in looked_after.said[0]
    assert "exit status 1" in looked_after.said[0]
    assert str(looked_after.child.log) in looked_after.said[0]


def test_a_child_that_was_well_for_long_begins_with_a_short_pause_again(looked_after):
    for _ in range(5):
        pause_after_an_end(looked_after)
    looked_after.wait(STEADY_S + 1)
    assert pause_after_an_end(looked_after, -9) == pytest.approx(SHORTEST_S, abs=0.5)
    assert "signal SIGKILL" in looked_after.said[-1]


def test_why_is_told_what_was_printed_last_and_since_when_it_fails(looked_after):
    asked = []
    looked_after.child.why = lambda printed, seconds: asked.append((printed, seconds))
    looked_after.child.log.write_text("before\nnow\n")
    looked_after.child.offset = len("before\n")
    for _ in range(3):
        pause_after_an_end(looked_after)
    assert {printed for printed, _ in asked} == {"now\n"}
    since = [seconds for _, seconds in asked]
    assert since[0] == 0
    assert since == sorted(since)
    looked_after.wait(STEADY_S + 1)
    pause_after_an_end(looked_after)
    assert asked[-1][1] == 0


def test_a_child_that_dies_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "SHORTEST_S", 0.2)
    program = "import os; print(os.environ['ASKED'], os.getpid(), flush=True)"
    short = Child("short", [*PYTHON, program], tmp_path / "logs" / "short.log", {"ASKED": "yes"})
    short.pause = 0.2
    steady = Child("steady", SLEEPS, tmp_path / "logs" / "steady.log")
    said = []
    supervise_for([short, steady], 2.5, said.append)
    lines = short.log.read_text().split("\n")[:-1]
    assert len(lines) == len(set(lines)) == len(said) >= 3
    assert {line.split()[0] for line in lines} == {"yes"}
    assert none_left([short, steady])


def test_why_ends_everything(tmp_path):
    def why(printed, seconds):
        return "the port is in use" if "in use" in printed else None

    steady = Child("steady", SLEEPS, tmp_path / "steady.log")
    bad = Child("bad", [*PYTHON, "print('port in use')"], tmp_path / "bad.log", why=why)
    with pytest.raises(GivenUpError, match="the port is in use"):
        supervisor.supervise([steady, bad], lambda line: None)
    assert none_left([steady, bad])
    assert steady.process.returncode == -signal.SIGTERM


def test_what_was_printed_before_this_start_is_no_reason(tmp_path):
    log = tmp_path / "log"
    log.write_text("port in use\n")
    child = Child("x", [*PYTHON, "print('fine')"], log)
    child.start()
    child.process.wait()
    assert child.printed() == "fine\n"
    assert log.read_text() == "port in use\nfine\n"


def test_a_program_that_is_not_there_ends_everything_in_one_line(tmp_path):
    steady = Child("steady", SLEEPS, tmp_path / "steady.log")
    bad = Child("bad", [str(tmp_path / "no-such-program")], tmp_path / "bad.log")
    with pytest.raises(GivenUpError, match="no-such-program") as caught:
        supervisor.supervise([steady, bad], lambda line: None)
    assert "\n" not in str(caught.value)
    assert none_left([steady, bad])


def test_once_is_asked_until_it_is_done(tmp_path):
    asked = []
    before = signal.getsignal(signal.SIGTERM)

    def once():
        asked.append(len(asked))
        if len(asked) == 3:
            child.process.kill()
        return len(asked) == 3

    child = Child("x", SLEEPS, tmp_path / "log", why=lambda printed, _: "killed")
    with pytest.raises(GivenUpError):
        supervisor.supervise([child], lambda line: None, once)
    assert asked == [0, 1, 2]
    assert signal.getsignal(signal.SIGTERM) is before


# --- ending -------------------------------------------------------------------------------------


def test_a_child_that_ignores_being_asked_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_S", 0.5)
    children = [
        Child("stubborn", [*PYTHON, STUBBORN], tmp_path / "stubborn.log"),
        Child("steady", SLEEPS, tmp_path / "steady.log"),
        Child("never", SLEEPS, tmp_path / "never.log"),
    ]
    for child in children[:2]:
        child.start()
    until(lambda: children[0].printed() == "ready\n")
    begun = time.monotonic()
    supervisor.end(children)
    assert 0.5 <= time.monotonic() - begun < 5
    assert children[0].process.returncode == -signal.SIGKILL
    assert children[1].process.returncode == -signal.SIGTERM
    assert children[2].process is None


def test_who_asks_twice_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_S", 60.0)
    child = Child("stubborn", [*PYTHON, STUBBORN], tmp_path / "stubborn.log")
    child.start()
    until(lambda: child.printed() == "ready\n")
    wait, asked = child.process.wait, []

    def interrupted(*arguments):
        asked.append(arguments)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return wait(*arguments)

    monkeypatch.setattr(child.process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        supervisor.end([child])
    assert child.process.returncode == -signal.SIGKILL


SUPERVISES = """
import signal
import sys
from pathlib import Path
from fedlearn.deployment import supervisor

# shells have what they start in the background ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)

supervisor.GRACE_S = float(sys.argv[2])
folder, (python, *program) = Path(sys.argv[1]), sys.argv[3:]
children = [
    supervisor.Child(str(k), [python, *program], folder / f"{k}.log") for k in range(3)
]

def once():
    print(*(child.process.pid for child in children), flush=True)
    return True

try:
    supervisor.supervise(children, print, once)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def supervising(folder, command, grace=10.0):
    """Start a process that supervises three of `command`; return it and their ids."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISES, folder, str(grace), *command],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=str)
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells children of their parent's end")
def test_however_the_supervisor_ends_its_children_end_too(how, tmp_path):
    process, children = supervising(tmp_path, SLEEPS)
    with process:
        assert len(children) == 3
        assert all(is_alive(pid) for pid in children)
        process.send_signal(how)
        until(lambda: not any(is_alive(pid) for pid in children))
        told = process.stdout.read()
        process.wait(10)
    assert told == ("" if how == signal.SIGKILL else "interrupted\n")
    assert process.returncode == (-how if how == signal.SIGKILL else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_a_second_sigterm_ends_stubborn_children_at_once(tmp_path):
    process, children = supervising(tmp_path, [*PYTHON, STUBBORN], grace=60.0)
    with process:
        until(lambda: all((tmp_path / f"{k}.log").read_text() == "ready\n" for k in range(3)))
        process.terminate()
        time.sleep(0.5)
        assert all(is_alive(pid) for pid in children)
        process.terminate()
        until(lambda: not any(is_alive(pid) for pid in children))
        process.wait(10)
