"""Tab completion: Hydra's, taught that the program has commands.

Hydra completes the words after the program's name; ours are the words after ``fedlearn run`` or
``fedlearn show``.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Sequence

from fedlearn.cli import COMMANDS
from fedlearn.commands.hydra_main import environment, hydra_main, show_only
from fedlearn.config.choices import find_choices


def command(arguments: Sequence[str]) -> int:
    """Answer ``-sc install=SHELL``, ``uninstall=SHELL`` and the shell's own ``query=SHELL``."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if not any(each.startswith("query=") for each in arguments):
        hydra_main(show_only, ["--shell-completion"], arguments)
        return 0
    current = "" if line.endswith(" ") else words[-1]
    before = words[1:] if not current else words[1:-1]
    if not before:
        _offer(COMMANDS, current)
    elif before[0] == "list":
        _offer(find_choices(), current)
    elif before[0] in ("run", "show"):  # the same words
        hydras = io.StringIO()
        shortened = line.replace(f" {before[0]} ", " ", 1)
        with contextlib.redirect_stdout(hydras), environment("COMP_LINE", shortened):
            hydra_main(show_only, ["--shell-completion"], arguments)
        # files named _* are shared bases, not choices
        _offer([each for each in hydras.getvalue().split() if "=_" not in each], "")
    return 0


def _offer(words: Iterable[str], start: str) -> None:
    sys.stdout.write(" ".join(word for word in words if word.startswith(start)) + "\n")
