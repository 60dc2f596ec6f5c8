"""``fedlearn deploy``: a SuperLink and SuperNodes over TLS, from keys to a first run in minutes."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedlearn.config.errors import ConfigError, among, one_line

if TYPE_CHECKING:
    from fedlearn.deployment.folder import Folder

HELP = """\
usage: fedlearn deploy COMMAND DIR [options]

Runs over machines of their own: one server, and one node beside each client's data. DIR is the
deployment's folder; its README.md says which part of it goes to which machine.

commands:
  init DIR --nodes N         make the folder: keys, certificates, start scripts, units, containers
      --host NAME            by which nodes reach the server (localhost); may be given again for
                             more names and addresses; nodes take the first
      --port PORT            where nodes reach it (9092)
      --control-port PORT    where runs are submitted, on the server itself and nowhere else (9093)
  superlink DIR              run the server
      --listen ADDRESS       where nodes can reach it from (0.0.0.0)
  supernode DIR --node K     run node K
      --data PATH            where this machine has what the run's data set reads, maybe a folder
                             that parts of it arrive in, 0.npz, 1.npz, ...; or a loader of your
                             own, module:function; without it, where the run says
      --device DEVICE        where it trains: cpu (the default), cuda:0, ...
      --threads N            that torch may use (1); equal numbers give equal results
      --local-port PORT      on this machine only, for its trainer (9094 + K)
  status DIR                 nodes and runs, as the server sees them
  advance DIR --node K       go on to the next experience, with clock=on_site; on node K's machine
      --to I                 to experience I, counted from 0, in place of the next
      --on DATE              on a date, 2026-12-31, in place of now
  renew DIR --node K         give node K another key; the old one is refused from then on
  audit DIR --node K         everything that has left node K, from the record on its own disk
  stop DIR --run ID          end a run

then, on the server:
  fedlearn run runtime=deployment runtime.connection=DIR num_clients=N
"""


def command(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for and return the exit status.

    Raises:
        ConfigError: It cannot be done.
    """
    action, *rest = arguments or ["--help"]
    if action in ("-h", "--help", "help") or set(rest) & {"-h", "--help"}:
        sys.stdout.write(HELP)
        return 0
    if action not in _ACTIONS:
        raise ConfigError(f"fedlearn deploy {action}: unknown{among(action, _ACTIONS, 'commands')}")
    parser = _Parser(action)
    parser.add_argument("folder", type=Path)
    for option in _OPTIONS[action]:
        option(parser)
    return _ACTIONS[action](parser.parse_args(rest))


class _Parser(argparse.ArgumentParser):
    """The options of one command; errors are one line."""

    def __init__(self, action: str) -> None:
        super().__init__(prog=f"fedlearn deploy {action}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(one_line(f"{self.prog}: {message}; see fedlearn deploy --help"))


def _init(flags: argparse.Namespace) -> int:
    from fedlearn.deployment.artefacts import write_artefacts
    from fedlearn.deployment.folder import init

    for name in ("port", "control_port"):
        _check_port(f"--{name.replace('_', '-')}", getattr(flags, name))
    if flags.port == flags.control_port:
        raise ConfigError(f"--control-port={flags.control_port}: is nodes' port already")
    if flags.nodes < 1:
        raise ConfigError(f"--nodes={flags.nodes}: must be at least 1")
    hosts = flags.host or ["localhost"]
    folder = init(flags.folder, flags.nodes, hosts, flags.port, flags.control_port)
    write_artefacts(folder)
    _say(f"{flags.folder}: a deployment of {flags.nodes} nodes, server at {hosts[0]}:{flags.port}")
    _say(f"{flags.folder / 'README.md'} says what goes to which machine, and what to keep secret")
    _say(f"next   fedlearn deploy superlink {flags.folder}")
    _say(f"       fedlearn deploy supernode {flags.folder} --node 0")
    return 0


def _superlink(flags: argparse.Namespace) -> int:
    from fedlearn.deployment.control import Control
    from fedlearn.deployment.machines import check_port_is_free, superlink

    folder = _server_folder(flags.folder)
    check_port_is_free("--control-port", "127.0.0.1", folder.facts.control_port)
    check_port_is_free("--port", flags.listen, folder.facts.port)
    control = Control(folder)

    def ready() -> bool:
        try:
            control.register()
        except ConfigError:  # not yet
            return False
        facts = folder.facts
        _say(
            f"ready: {facts.nodes} nodes may join at {facts.host}:{facts.port}; runs are submitted "
            f"on this machine (127.0.0.1:{facts.control_port}); logs in {folder.server / 'logs'}"
        )
        return True

    return _supervise(superlink(folder, flags.listen), ready)


def _supernode(flags: argparse.Namespace) -> int:
    from fedlearn.deployment.folder import NODE_PORT, Folder
    from fedlearn.deployment.machines import check_port_is_free, supernode

    part = Folder(flags.folder).node(flags.node)
    port = NODE_PORT + flags.node if flags.local_port is None else flags.local_port
    _check_port("--local-port", port)
    check_port_is_free("--local-port", "127.0.0.1", port)
    if flags.threads < 1:
        raise ConfigError(f"--threads={flags.threads}: must be at least 1")
    _check_data(flags.data)
    _say(
        f"node {flags.node} of {part.facts.host}:{part.facts.port}, training on {flags.device}; "
        f"logs in {part.path / 'logs'}"
    )
    _await_server(part)
    return _supervise(supernode(part, flags.node, port, flags.device, flags.threads, flags.data))


def _await_server(part: "Folder") -> None:
    """Return when the server answers, and would take this machine's clock.

    A SuperNode that finds nobody asks again ever more rarely, and one that is refused ends.
    """
    from fedlearn.deployment.machines import clock_trouble, server_time

    said: set[str] = set()
    while True:
        there = server_time(part)
        if there is None:
            why, kind = f"waiting for {part.facts.host}:{part.facts.port}", "silent"
        elif trouble := clock_trouble(there, time.time()):
            why, kind = trouble, "clock"
        else:
            return
        if kind not in said:
            said.add(kind)
            _say(why)
        time.sleep(1.0)


def _supervise(children, once: Callable[[], bool] = lambda: True) -> int:  # type: ignore[no-untyped-def]
    from fedlearn.deployment.supervisor import GivenUpError, supervise

    try:
        supervise(children, _say, once)
    except GivenUpError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _status(flags: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from fedlearn.deployment.control import Control

    control = Control(_server_folder(flags.folder))
    console = Console(highlight=False)
    nodes = Table("node", "is", "since", "Flower's id", box=None)
    for node in control.nodes():
        name = "a stranger" if node.client_id is None else str(node.client_id)
        nodes.add_row(name, node.status, node.since[:19].replace("T", " "), str(node.node_id))
    console.print(nodes)
    runs = Table("run", "is", "", box=None)
    for run in control.runs():
        runs.add_row(str(run.run_id), run.outcome or run.status, run.details)
    console.print(runs if runs.row_count else "no runs yet")
    return 0


def _advance(flags: argparse.Namespace) -> int:
    from datetime import date

    from fedlearn.deployment.folder import Folder
    from fedlearn.deployment.site_clock import SiteClock

    part = Folder(flags.folder).node(flags.node)
    clock = SiteClock.read(part.path).advanced(flags.to, flags.on, date.today())
    clock.write(part.path)
    later = [f"{index} from {on}" for index, on in sorted((clock.dates or {}).items())]
    _say(f"node {flags.node} is in experience {'; '.join([str(clock.at(date.today())), *later])}")
    return 0


def _renew(flags: argparse.Namespace) -> int:
    from fedlearn.deployment.control import Control

    folder = _server_folder(flags.folder)
    part = folder.renew_key(flags.node)
    _say(f"{part.path}: has another key; take node.key and node.pub to the machine of its node")
    try:
        Control(folder).register()
    except ConfigError as error:
        _say(f"until the server is started anew, the old key is taken: {error}")
    else:
        _say("the old key is refused from now on")
    return 0


def _audit(flags: argparse.Namespace) -> int:
    from fedlearn.deployment.audit import read_audit, told
    from fedlearn.deployment.folder import Folder

    part = Folder(flags.folder).node(flags.node)
    sent = read_audit(part.audit)
    if not sent:
        _say(f"nothing has left node {flags.node}: {part.audit} is empty")
    for line in told(sent):
        _say(line)
    return 0


def _stop(flags: argparse.Namespace) -> int:
    from fedlearn.deployment.control import Control

    control = Control(_server_folder(flags.folder))
    status = control.status(flags.run)
    if status.status == "finished":
        _say(f"run {flags.run} has ended already: {status.outcome}")
        return 0
    control.stop(flags.run)
    _say(f"run {flags.run} is stopped")
    return 0


def _check_data(data: str | None) -> None:
    if data is not None and ":" not in data and not Path(data).exists():
        raise ConfigError(f"--data={data}: there is no such file or folder")


def _server_folder(path: Path) -> "Folder":
    """Open the folder of the server's machine: a node's part does not know what it asks for."""
    from fedlearn.deployment.folder import Folder

    folder = Folder(path)
    if not folder.server.is_dir():
        raise ConfigError(f"{path}: is not the server's, {folder.server.name}/ is missing")
    return folder


def _check_port(flag: str, port: int) -> None:
    if not 0 < port < 65536:
        raise ConfigError(f"{flag}={port}: must be in [1, 65535]")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _option(*names: str, **settings: object) -> Callable[[argparse.ArgumentParser], object]:
    return lambda parser: parser.add_argument(*names, **settings)  # type: ignore[arg-type]


_OPTIONS = {
    "init": [
        _option("--nodes", type=int, required=True),
        _option("--host", action="append"),
        _option("--port", type=int, default=9092),
        _option("--control-port", type=int, default=9093),
    ],
    "superlink": [_option("--listen", default="0.0.0.0")],  # noqa: S104 - nodes come from anywhere
    "supernode": [
        _option("--node", type=int, required=True),
        _option("--data"),
        _option("--device", default="cpu"),
        _option("--threads", type=int, default=1),
        _option("--local-port", type=int),
    ],
    "status": [],
    "advance": [
        _option("--node", type=int, required=True),
        _option("--to", type=int),
        _option("--on"),
    ],
    "renew": [_option("--node", type=int, required=True)],
    "audit": [_option("--node", type=int, required=True)],
    "stop": [_option("--run", type=int, required=True)],
}
_ACTIONS = {
    "init": _init,
    "superlink": _superlink,
    "supernode": _supernode,
    "status": _status,
    "advance": _advance,
    "renew": _renew,
    "audit": _audit,
    "stop": _stop,
}
