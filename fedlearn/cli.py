"""The command line: ``fedlearn run``, ``resume``, ``show``, ``list``, ``doctor``.

Nothing heavy is imported before a command needs it, so that help and errors answer at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

import fedlearn
from fedlearn.config.errors import ConfigError, among

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended."""

COMMANDS = {
    "run": "train clients on a stream of experiences, evaluate, and log",
    "resume": "go on with a run that was interrupted, killed or failed, from its last checkpoint",
    "manifest": "print what defines a run's protocol; fedlearn run manifest=RUN repeats it",
    "show": "draw a protocol: who holds what, and who learns what when; trains nothing",
    "deploy": "run over machines of their own: a server, and a node beside each client's data",
    "list": "show every choice of every group",
    "doctor": "check this machine: versions, devices, data, W&B",
}

HELP = f"""\
fedlearn {fedlearn.__version__}: federated continual learning with Flower, Avalanche, Hydra and W&B

usage: fedlearn COMMAND [...]

commands:
{chr(10).join(f"  {name:<8} {meaning}" for name, meaning in COMMANDS.items())}

options:
  --help, -h   show this help; fedlearn run --help lists every key
  --version    show the version

examples:
  fedlearn run                                       replay on Split-Digits, ten clients
  fedlearn run continual=naive                       the same without a memory
  fedlearn run -m continual=naive,replay seed=0,1,2  six runs and a table that compares them
  fedlearn resume runs/DATE/TIME_NAME                go on after Ctrl-C, a crash, a power cut
  fedlearn run dry_run=true                          what a run would cost
  fedlearn show partition=iid clock=staggered        the protocol: tables and pictures
  fedlearn list continual                            the continual strategies

tab completion, in ~/.bashrc:
  eval "$(fedlearn -sc install=bash)"                zsh and fish likewise
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: The arguments, without the program's name; the process's own by default.

    Returns:
        0 for success, 1 for a run that failed, 2 for a configuration that cannot run (one line on
        stderr says why), 130 after Ctrl-C. Bugs are raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: Sequence[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h", "help"):
        sys.stdout.write(HELP)
        return 0
    if command in ("--version", "-V"):
        sys.stdout.write(f"fedlearn {fedlearn.__version__}\n")
        return 0
    if command in ("-sc", "--shell-completion"):
        return _command("completion")(arguments[1:])
    if command not in COMMANDS:
        raise ConfigError(f"fedlearn {command}: unknown{among(command, COMMANDS, 'commands')}")
    return _command(command)(arguments[1:])


def _command(name: str) -> Callable[[Sequence[str]], int]:
    """Import a command only now that it is asked for."""
    module = import_module(f"fedlearn.commands.{name}")
    return cast(Callable[[Sequence[str]], int], module.command)


if __name__ == "__main__":
    sys.exit(main())
