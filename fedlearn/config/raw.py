"""Hydra's own composition, called so that nothing process-wide changes."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedlearn.config import schema
from fedlearn.config.choices import MAIN, conf_dir
from fedlearn.config.errors import one_line

HYDRA_VERSION = "1.3"
"""The Hydra whose defaults we were written against."""


def compose_raw(overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    """Return Hydra's composition, its ``hydra`` node included; errors are Hydra's own.

    Args:
        overrides: As on the command line.
        config_dir: A directory with more options for the groups.
    """
    schema.register()
    search = [f"hydra.searchpath=[{quoted(f'file://{config_dir}')}]"] if config_dir else []
    with fresh_hydra(), hydra.initialize_config_dir(str(conf_dir()), version_base=HYDRA_VERSION):
        return hydra.compose(Path(MAIN).stem, [*search, *overrides], return_hydra_config=True)


@contextmanager
def fresh_hydra() -> Iterator[None]:
    """Set Hydra's process-wide instance aside, and put it back on the way out."""
    instance = GlobalHydra.instance()
    before = instance.hydra
    instance.clear()
    try:
        yield
    finally:
        instance.hydra = before


def quoted(value: str) -> str:
    """Return `value` as a quoted string of Hydra's override grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return f"'{escaped}'"


def reason(error: OmegaConfBaseException) -> str:
    """Return what OmegaConf says, without the key and the type that it adds below."""
    return one_line(str(error.msg or error).partition("full_key:")[0])
