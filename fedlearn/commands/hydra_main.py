"""Hydra's own main function, called so that it can be called again."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedlearn.config import schema
from fedlearn.config.choices import MAIN, conf_dir
from fedlearn.config.errors import ConfigError, one_line
from fedlearn.config.raw import HYDRA_VERSION, fresh_hydra


def hydra_main(
    task: Callable[[DictConfig], Any],
    flags: Sequence[str],
    overrides: Sequence[str],
    config_dir: Path | None = None,
) -> None:
    """Let Hydra compose, make the run's directory, and call `task` once for each job.

    What `task` raises is raised as it is.

    Args:
        task: Receives a job's configuration, without Hydra's own node.
        flags: Hydra's, e.g. ``["--multirun"]``.
        overrides: As on the command line.
        config_dir: A directory with more options for the groups.

    Raises:
        ConfigError: Hydra cannot do what the flags and overrides ask for.
    """
    schema.register()
    command_line = sys.argv

    def job(config: DictConfig) -> Any:
        with _arguments(command_line):  # for the run's record
            return task(config)

    entry = hydra.main(
        config_path=str(conf_dir()), config_name=Path(MAIN).stem, version_base=HYDRA_VERSION
    )(job)
    search = ["--config-dir", str(config_dir)] if config_dir else []
    hydras = [command_line[0], *search, *flags, *overrides]
    with fresh_hydra(), _arguments(hydras), environment("HYDRA_FULL_ERROR", "1"):
        try:
            entry()
        except (HydraException, OmegaConfBaseException) as error:
            # about Hydra's own keys: ours are composed already
            raise ConfigError(one_line(error)) from error


@contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """Replace the process's arguments, which is where Hydra takes its own from."""
    before = sys.argv
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, and put it back on the way out."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def show_only(config: DictConfig) -> None:
    """Do nothing: the task of calls that only show something."""
