"""``fedlearn run --help``: every key with its default and its meaning, every group's choices."""

import textwrap
from collections.abc import Sequence

from fedlearn.config.choices import Choice, default_choices, find_choices, keys

_INTRODUCTION = """\
usage: fedlearn run [KEY=VALUE ...] [GROUP=CHOICE ...] [options]

Trains clients on a stream of experiences, round by round, tests the global model, and writes
metrics, summary and configuration into a run directory of its own.

examples:
  fedlearn run                                         replay on Split-Digits, ten clients
  fedlearn run continual=naive local.epochs=1          another learner, shorter turns
  fedlearn run scenario=permuted_digits partition=iid  another stream, another split
  fedlearn run -m seed=0,1,2 continual=naive,replay    six runs, and a table that compares them
  fedlearn run experiment=digits_bands seed=1          a preset, with one key changed
  fedlearn run continual=replay --cfg job              show the configuration, run nothing

options:
  -m, --multirun         run every combination of the values given with commas
  --cfg job|hydra|all    print the configuration instead of running; --resolve, --package KEY
  --config-dir DIR       take more choices from DIR/GROUP/CHOICE.yaml
  --info [WHAT]          Hydra's view: defaults, defaults-tree, searchpath, plugins
  -h, --help             this help

tab completion: eval "$(fedlearn -sc install=bash)"    zsh and fish likewise
"""
_WIDTH = 100


def run_help() -> str:
    """Return the help of ``fedlearn run``."""
    return "\n".join([_INTRODUCTION, *_groups(), "", *_keys(), ""])


def _groups() -> list[str]:
    choices, defaults = find_choices(), default_choices()
    lines = [
        "groups, default first; fedlearn list GROUP explains the choices, and every choice has"
    ]
    lines.append("keys of its own, e.g. continual.KEY=VALUE:")
    for group, default in defaults.items():
        lines += _entry(group, ", ".join(_default_first(choices.get(group, []), default)), 14)
    return lines


def _default_first(choices: Sequence[Choice], default: str) -> list[str]:
    others = [choice.name for choice in choices if choice.name != default]
    return others if default == "null" else [default, *others]


def _keys() -> list[str]:
    lines = ["keys:"]
    for key in keys():
        default = "derived" if key.default.startswith("${") else key.default
        lines += _entry(f"{key.name}={default}", key.meaning, 28)
    return lines


def _entry(label: str, text: str, column: int) -> list[str]:
    """Return `label` and, from `column` on, `text`, wrapped."""
    indent = " " * (column + 2)
    first = f"  {label:<{column - 1}} "
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=indent)
