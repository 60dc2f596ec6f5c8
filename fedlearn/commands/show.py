"""``fedlearn show``: a protocol before any training; help and wrong keys are answered at once."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedlearn.commands.run import importable
from fedlearn.config.errors import ConfigError, one_line

if TYPE_CHECKING:
    from fedlearn.config.composition import Composed

FOLDER = "show"
"""Below ``out``: where the pictures go, each protocol's into a folder of its own."""

HELP = """\
usage: fedlearn show [KEY=VALUE ...] [GROUP=CHOICE ...] [options]

Shows the protocol of `fedlearn run` with the same overrides, and trains nothing: the samples of
each client in each experience, how different clients and experiences are, and pictures of who holds
what (partition.png), who learns what when (clock.png) and what inputs look like (samples.png),
which go into OUT/show/SCENARIO-PARTITION-CLOCK-HASH.

examples:
  fedlearn show                                         the default protocol
  fedlearn show partition=dirichlet partition.alpha=0.1
  fedlearn show clock=staggered num_clients=8           clients begin after each other
  fedlearn show scenario=rotated_digits skew=rotated    domains, and the clients' views

Divergences are of labels (Jensen and Shannon), from 0, the same shares, to 1, no class in common.

options:
  --no-pictures          print only
  --config-dir DIR       take more choices from DIR/GROUP/CHOICE.yaml
  -h, --help             this help; fedlearn run --help has every key
"""


def command(arguments: Sequence[str]) -> int:
    """Show the protocol that the arguments name, and return the exit status.

    Raises:
        ConfigError: There is no such protocol, or its pictures cannot be written.
    """
    flags = _Parser().parse_intermixed_args(list(arguments))
    if flags.help:
        sys.stdout.write(HELP)
        return 0
    config_dir = flags.config_dir.absolute() if flags.config_dir else None
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir={flags.config_dir}: there is no such directory")
    with importable(Path.cwd()):
        from fedlearn.config.composition import compose
        from fedlearn.config.protocol import expand

        _show(compose(expand(flags.overrides), config_dir), pictures=not flags.no_pictures)
    return 0


class _Parser(argparse.ArgumentParser):
    """The options of this command; errors are one line."""

    def __init__(self) -> None:
        super().__init__(prog="fedlearn show", add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*")
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("--no-pictures", action="store_true")
        self.add_argument("-cd", "--config-dir", type=Path)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(one_line(f"fedlearn show: {message}; see fedlearn show --help"))


def _show(composed: "Composed", pictures: bool) -> None:
    """Build the protocol and nothing else of the run, print it, and draw it."""
    from rich.console import Console

    from fedlearn.config.experiment import load_scenario, prepare, schedule_of
    from fedlearn.config.protocol import check_same
    from fedlearn.review.protocol import headline, numbers_table, sizes_table, write_pictures

    plan = prepare(composed)
    settings, scenario = plan.settings, load_scenario(plan)
    manifest = scenario.manifest()
    if settings.manifest is not None:
        check_same(settings.manifest, manifest)
    schedule = schedule_of(plan, scenario)
    console = Console(highlight=False)
    console.print(headline(scenario, schedule, manifest), soft_wrap=True, markup=False)
    console.print(sizes_table(scenario, console.width))
    console.print(numbers_table(scenario))
    if not pictures:
        return
    choices = (composed.choices[group] for group in ("scenario", "partition", "clock"))
    name = "-".join((*choices, manifest["hash"][:8]))
    try:
        paths = write_pictures(scenario, schedule, Path(settings.out) / FOLDER / name)
    except OSError as error:
        raise ConfigError(f"out={settings.out}: {one_line(error)}") from error
    for path in paths:
        console.print(str(path), soft_wrap=True, markup=False)
