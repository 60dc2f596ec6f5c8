"""``fedlearn list [group]``: every choice of every group, with what its file says about it."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedlearn.config.choices import default_choices, find_choices
from fedlearn.config.errors import ConfigError, among

HELP = """\
usage: fedlearn list [GROUP ...]

Shows the choices of every group, or of the groups named; * marks the default.
"""


def command(arguments: Sequence[str]) -> int:
    """Print the table of choices.

    Raises:
        ConfigError: An argument is not a group.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # one line a choice, for grep
    if set(arguments) & {"--help", "-h"}:
        console.print(HELP, end="", markup=False)
        return 0
    groups, defaults = find_choices(), default_choices()
    order = [group for group in (*defaults, *groups) if group in groups]
    for name in arguments:
        if name not in groups:
            raise ConfigError(f"fedlearn list {name}: unknown group{among(name, order, 'groups')}")
    table = Table("choice", "what it is", box=None, padding=(0, 2), header_style="bold")
    for group in arguments or dict.fromkeys(order):
        for choice in groups[group]:
            mark = " *" if defaults.get(group) == choice.name else ""
            table.add_row(f"[cyan]{group}=[/]{choice.name}{mark}", escape(choice.description))
        table.add_row()
    console.print(table)
    return 0
