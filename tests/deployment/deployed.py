"""A deployment as a user would start it: real processes, on loopback or in network namespaces."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedlearn.cli import main
from fedlearn.deployment.folder import Folder

REPOSITORY = Path(__file__).parents[2]
FEDLEARN = [sys.executable, "-m", "fedlearn"]
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "WANDB_MODE": "offline", "PYTHONPATH": str(REPOSITORY)}
SMALL = [
    "scenario=split_digits",
    "num_clients=3",
    "engine=functional",
    "continual=ewc_replay",
    "continual.ewc_lambda=1",
    "local.epochs=1",
    "tracker=none",
]
"""A stateful run of three clients that takes next to no time to compute."""


class Deployed:
    """The machines of a deployment, all of them here.

    Attributes:
        folder: The deployment's.
        out: Where runs that are submitted leave what they fetched.
    """

    def __init__(
        self, folder: Folder, out: Path, within: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Describe them.

        Args:
            folder: The deployment's.
            out: For runs.
            within: What comes before a machine's commands, such as ``ip netns exec NAME``, by
                machine: ``server`` or a node's number.
        """
        self.folder = folder
        self.out = out
        self._within = within or {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_server(self) -> None:
        """Start the SuperLink and what belongs to it."""
        self._start("server", ["superlink", str(self.folder.path)])

    def start_node(self, number: int, options: Sequence[str] = ()) -> None:
        """Start a node."""
        node = ["--node", str(number), "--local-port", str(free_port())]
        self._start(str(number), ["supernode", str(self.folder.path), *node, *options])

    def start(self) -> None:
        """Start all of them, and wait until they know each other."""
        self.start_server()
        for number in range(self.folder.facts.nodes):
            self.start_node(number)
        self.wait_for_nodes(self.folder.facts.nodes)

    def command(self, machine: str, arguments: Sequence[str]) -> list[str]:
        """Return fedlearn's command line on a machine."""
        return [*self._within.get(machine, ()), *FEDLEARN, *arguments]

    def _start(self, machine: str, arguments: Sequence[str]) -> None:
        with (self.out / f"{machine}.log").open("ab") as log:
            self._processes[machine] = subprocess.Popen(
                self.command(machine, ["deploy", *arguments]),
                stdout=log,
                stderr=log,
                env={**os.environ, **QUIET},
                cwd=self.out,
            )

    def ask(self, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        """Run a command on the server's machine."""
        return subprocess.run(
            self.command("server", arguments),
            capture_output=True,
            text=True,
            timeout=280,
            env={**os.environ, **QUIET},
            cwd=self.out,
        )

    def wait_for_nodes(self, count: int, seconds: float = 90.0) -> None:
        """Wait until so many nodes are online."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            told = self.ask(["deploy", "status", str(self.folder.path)])
            if told.stdout.count(" online ") >= count:
                return
            time.sleep(1.0)
        logs = "\n".join(path.read_text() for path in sorted(self.out.glob("*.log")))
        raise AssertionError(f"{count} nodes are not online: {told.stdout}{told.stderr}\n{logs}")

    def submit(self, overrides: Sequence[str]) -> "subprocess.Popen[str]":
        """Start a run."""
        connection = f"runtime.connection={self.folder.path}"
        return subprocess.Popen(
            self.command("server", ["run", "runtime=deployment", connection, *overrides]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **QUIET},
            cwd=self.out,
        )

    def children(self, machine: str) -> dict[str, int]:
        """Return the process ids of a machine's own processes, by what they are."""
        return dict(_children(self._processes[machine].pid))

    def kill(self, machine: str, name: str) -> None:
        """SIGKILL one of a machine's processes; its supervisor lives."""
        os.kill(self.children(machine)[name], signal.SIGKILL)

    def stop(self) -> None:
        """End all machines."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait()


def _children(pid: int) -> Iterator[tuple[str, int]]:
    """Yield name and process id of each process below one, by the names of `NAMES`."""
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in map(int, told):
        line = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        for name in NAMES:
            if any(name in each for each in line[:4]):
                yield name, child
        yield from _children(child)


NAMES = (
    *("flower-superlink", "flower-superexec", "flwr-serverapp"),
    *("flower-supernode", "trainer", "gate"),
)


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def finished(process: "subprocess.Popen[str]") -> Iterator[None]:
    """End a process on the way out, however that goes."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def run_dir_of(out: Path) -> Path:
    """Return the only run's directory below a folder."""
    (summary,) = out.glob("runs/*/*/summary.json")
    return summary.parent


def summary_of(run_dir: Path) -> dict[str, Any]:
    """Return a run's summary."""
    return json.loads((run_dir / "summary.json").read_text())  # type: ignore[no-any-return]


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return a run's events, those that no longer hold among them."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def rounds_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return a run's round events."""
    return [event for event in events_of(run_dir) if event["event"] == "round"]


def wait_for_round(process: "subprocess.Popen[str]", server_round: int) -> None:
    """Wait until a run that is followed tells of a round."""
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        if line.startswith(f"round {server_round:>2}/"):
            return
    raise AssertionError(process.stderr.read())


def serial(out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the same here, by the serial executor, and return its summary."""
    assert main(["run", *overrides, f"out={out / 'serial'}"]) == 0
    (path,) = (out / "serial").glob("*/*/summary.json")
    return summary_of(path.parent)
