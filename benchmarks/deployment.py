"""A deployment of three nodes on loopback: how soon its first round is over, what a round costs.

    python benchmarks/deployment.py [--rounds 10]

Beside it Flower alone, with the same TLS and node authentication: a ClientApp that returns what it
was sent, in a process of its own a message, as Flower does it. Both exchange the weights of the
same model. A SuperNode sleeps for 3 s when it finds no message, and for 0.5 s while its app has no
reply: the first of these is what waiting at fedlearn's gate saves.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from fedlearn.config.errors import ConfigError
from fedlearn.deployment import control as flower_control
from fedlearn.deployment.control import Control
from fedlearn.deployment.folder import init
from fedlearn.deployment.machines import superlink, supernode
from fedlearn.deployment.supervisor import Child, end

NODES = 3
FLOWER_ROUNDS = 5
"""Of which the first does not count; a round of Flower's takes long."""

OVERRIDES = [
    *("scenario=split_digits", f"num_clients={NODES}", "engine=functional", "continual=naive"),
    *("fraction_evaluate=0", "tracker=none", "local.epochs=1"),
]
NO_OP = {
    "pyproject.toml": flower_control.APP["pyproject.toml"].replace('"fedlearn"', '"noop"', 1),
    "app.py": """\
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message, context):
    content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


class Timed(FedAvg):
    def configure_train(self, *given):
        print("round at", time.time(), flush=True)
        return super().configure_train(*given)


@server_app.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < NODES:
        time.sleep(0.2)
    shapes = SHAPES
    arrays = ArrayRecord({str(n): Array(np.zeros(s, np.float32)) for n, s in enumerate(shapes)})
    Timed(fraction_evaluate=0.0, min_available_nodes=NODES, min_train_nodes=NODES).start(
        grid, arrays, num_rounds=ROUNDS
    )
    print("round at", time.time(), flush=True)
""",
}
SHAPES = [(100, 64), (100,), (10, 100), (10,)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        first, ours = fedlearn_rounds(Path(place), rounds)
        theirs = flower_rounds(Path(place), FLOWER_ROUNDS)
    print(f"fedlearn deploy init to the end of the first round: {first:.0f} s")
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"a round, median of {len(ours)}: fedlearn {mine:.2f} s, Flower {other:.2f} s")
    print(f"Flower's is {other / mine:.1f} times as long")


def fedlearn_rounds(place: Path, rounds: int) -> tuple[float, list[float]]:
    """Return the seconds from `init` to the first round's end, and those of each later round."""
    begun = time.time()
    folder = init(place / "ours", NODES, ["localhost"], 19492, 19493)
    command = [sys.executable, "-m", "fedlearn"]
    started = [[*command, "deploy", "superlink", str(folder.path), "--listen", "127.0.0.1"]]
    for node in range(NODES):
        own = ["--node", str(node), "--local-port", str(19494 + node)]
        started.append([*command, "deploy", "supernode", str(folder.path), *own])
    with (place / "ours.log").open("wb") as log, running(started, log):
        control = Control(folder)
        wait_for_nodes(control)
        connection = f"runtime.connection={folder.path}"
        length = f"rounds_per_experience={-(-rounds // 5)}"
        submitted = [*command, "run", "runtime=deployment", connection, length, *OVERRIDES]
        subprocess.run(submitted, cwd=place, check=True, stdout=log, stderr=log)
    (run_dir,) = (path.parent for path in (folder.server / "runs").glob("*/summary.json"))
    times = [event["time"]["round_s"] for event in events(run_dir) if event["event"] == "round"]
    ended = (run_dir / "summary.json").stat().st_mtime
    return ended - begun - sum(times[1:]), times[1:]


def flower_rounds(place: Path, rounds: int) -> list[float]:
    """Return the seconds of each round of a no-op in Flower's own way, but for the first."""
    folder = init(place / "theirs", NODES, ["localhost"], 19593, 19593)
    children = [as_flower_does(superlink(folder, "127.0.0.1")[0])]
    for node in range(NODES):
        part = folder.node(node)
        children.append(as_flower_does(supernode(part, node, 19594 + node, "cpu", 1)[0]))
    try:
        children[0].start()
        control = Control(folder)
        while True:
            try:
                control.register()
                break
            except ConfigError:  # not yet
                time.sleep(0.2)
        for child in children[1:]:
            child.start()
        wait_for_nodes(control)
        app = NO_OP["app.py"].replace("NODES", str(NODES)).replace("ROUNDS", str(rounds))
        run_id = control.submit({}, {**NO_OP, "app.py": app.replace("SHAPES", str(SHAPES))})
        text = "".join(control.logs(run_id))
    finally:
        end(children)
    stamps = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("round at")]
    return [later - one for one, later in pairwise(stamps)][1:]


def as_flower_does(child: Child) -> Child:
    """Return one of our processes as Flower starts it by itself: apps in subprocesses of it."""
    command = list(child.command)
    at = command.index("--isolation")
    command[at + 1] = "subprocess"
    at = command.index("--superexec-auth-secret-file")
    del command[at : at + 2]
    own = {k: v for k, v in child.environment.items() if "TASK_POLL" not in k}
    return Child(child.name, command, child.log, own)


@contextmanager
def running(commands: Sequence[Sequence[str]], log: object) -> Iterator[None]:
    """Run programs until the end of a block."""
    processes = [subprocess.Popen(each, stdout=log, stderr=log) for each in commands]  # type: ignore
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def wait_for_nodes(control: Control) -> None:
    """Wait until all nodes are online."""
    while True:
        try:
            if sum(node.status == "online" for node in control.nodes()) == NODES:
                return
        except ConfigError:  # not yet
            pass
        time.sleep(0.2)


def events(run_dir: Path) -> Iterator[dict]:
    """Yield a run's events."""
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


if __name__ == "__main__":
    main()
