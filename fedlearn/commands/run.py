"""``fedlearn run``: what its arguments ask for; help and wrong keys are answered without torch."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from fedlearn.commands.help import run_help
from fedlearn.config.errors import ConfigError, one_line


def command(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for and return the exit status.

    Raises:
        ConfigError: A configuration cannot run.
    """
    flags = _Parser().parse_intermixed_args(list(arguments))
    if any(text.startswith("manifest=") for text in flags.overrides):
        from fedlearn.config.protocol import expand

        flags.overrides = expand(flags.overrides)
    if flags.help:
        sys.stdout.write(run_help())
        return 0
    config_dir = flags.config_dir.absolute() if flags.config_dir else None
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir={flags.config_dir}: there is no such directory")
    with importable(Path.cwd()):
        return _show(flags, config_dir) if flags.cfg or flags.info else _run(flags, config_dir)


class _Parser(argparse.ArgumentParser):
    """Hydra's options that make sense here; its errors are one line."""

    def __init__(self) -> None:
        super().__init__(prog="fedlearn run", add_help=False, allow_abbrev=False)
        self.add_argument("overrides", nargs="*")
        self.add_argument("-h", "--help", action="store_true")
        self.add_argument("-m", "--multirun", action="store_true")
        self.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
        self.add_argument("--resolve", action="store_true")
        self.add_argument("-p", "--package")
        self.add_argument("-i", "--info", nargs="?", const="all")
        self.add_argument("-cd", "--config-dir", type=Path)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(one_line(f"fedlearn run: {message}; see fedlearn run --help"))


def _show(flags: argparse.Namespace, config_dir: Path | None) -> int:
    """Print what Hydra made of the overrides, after making sure that it can."""
    from fedlearn.commands.hydra_main import hydra_main, show_only
    from fedlearn.config.composition import compose

    compose(flags.overrides, config_dir)
    what = ["--cfg", flags.cfg] if flags.cfg else ["--info", flags.info]
    package = ["--package", flags.package] if flags.package else []
    resolve = ["--resolve"] if flags.resolve else []
    hydra_main(show_only, [*what, *package, *resolve], flags.overrides, config_dir)
    return 0


def _run(flags: argparse.Namespace, config_dir: Path | None) -> int:
    """Compose every job, and only then import what it takes to run one."""
    from fedlearn.commands.sweep import plan_sweep
    from fedlearn.config.composition import compose

    sweep = None
    if flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides:
        sweep = plan_sweep(flags.overrides, config_dir)
    overrides = sweep.jobs if sweep else [flags.overrides]
    jobs = [compose(each, config_dir) for each in overrides]

    from fedlearn.commands.launch import launch, launch_sweep

    if sweep is None:
        return launch(jobs[0], flags.overrides, config_dir)
    return launch_sweep(jobs, sweep, config_dir)


@contextmanager
def importable(directory: Path) -> Iterator[None]:
    """Let YAML files name the user's own modules; installed ones come first."""
    sys.path.append(str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
