"""Composition: the user's overrides on top of ``conf/`` become one plain, resolved tree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedlearn.config.diagnosis import COMPOSITION_ERRORS, diagnose
from fedlearn.config.errors import ConfigError, shown
from fedlearn.config.raw import compose_raw, reason


@dataclass(frozen=True)
class Composed:
    """One configuration.

    Attributes:
        tree: Plain values, every interpolation resolved; Hydra's own node is not in it.
        choices: The option of each group, e.g. ``{"continual": "replay"}``.
    """

    tree: dict[str, Any]
    choices: dict[str, str]


def compose(overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed:
    """Compose ``conf/config.yaml`` with `overrides`, as ``fedlearn run`` does.

    Args:
        overrides: As on the command line: ``["continual=naive", "local.epochs=1"]``.
        config_dir: A directory with more options for the groups.

    Raises:
        ConfigError: An override is wrong; the message says which and why.
    """
    setup_globals()
    before = HydraConfig.instance().cfg
    try:
        config = compose_raw(overrides, config_dir)
        HydraConfig.instance().set_config(config)  # our own keys may name Hydra's choices
        choices = config.hydra.runtime.choices
        with open_dict(config):
            del config["hydra"]
        return composed(config, choices)
    except (*COMPOSITION_ERRORS, TypeError) as error:  # Hydra's own, for a list as a choice
        raise diagnose(overrides, config_dir, error) from error
    finally:
        HydraConfig.instance().cfg = before


def composed(config: DictConfig, choices: Mapping[str, Any]) -> Composed:
    """Return what Hydra composed for a job as plain values.

    Args:
        config: The job's configuration, without Hydra's own node.
        choices: Of every group, Hydra's own among them.

    Raises:
        ConfigError: An interpolation names nothing.
    """
    own = {group: shown(choice) for group, choice in choices.items() if "hydra/" not in group}
    return Composed(_plain(config), own)


def _plain(config: DictConfig) -> dict[str, Any]:
    """Return a job's configuration as plain values, every interpolation resolved."""
    try:
        tree = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        written = _written(OmegaConf.to_container(config), str(error.full_key))
        raise ConfigError(f"{error.full_key}={written}: {reason(error)}") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _written(tree: Any, key: str) -> Any:
    """Return what stands at a dotted key of an unresolved tree; a list stands for its entries."""
    for part in key.partition("[")[0].split("."):
        tree = tree[part]
    return tree
