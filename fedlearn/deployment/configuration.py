"""The configuration of a run as it travels: one text, and the admin's signature of it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fedlearn
from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.deployment.keys import is_signed, sign

CONFIGURATION, SIGNATURE, OVERRIDES = "configuration", "signature", "overrides"
"""Keys of the Flower app's run configuration."""


@dataclass(frozen=True)
class Configuration:
    """What every machine of a deployment needs to know of a run.

    Attributes:
        run: The run's own name; a run that is resumed keeps it, whatever Flower calls it.
        version: Of fedlearn, that all machines must have.
        tree: The composed configuration.
        choices: The option of each group.
    """

    run: str
    version: str
    tree: dict[str, Any]
    choices: dict[str, str]

    @property
    def composed(self) -> Composed:
        """The configuration, ready to build from."""
        return Composed(json.loads(json.dumps(self.tree)), dict(self.choices))


def signed(run: str, job: Composed, admin_key: Path) -> dict[str, str]:
    """Return a run's configuration for Flower to carry.

    Args:
        run: The run's own name.
        job: What it is made of.
        admin_key: Signs it.
    """
    told = Configuration(run, fedlearn.__version__, job.tree, job.choices)
    text = json.dumps(asdict(told), sort_keys=True)
    return {CONFIGURATION: text, SIGNATURE: sign(text, admin_key)}


def read_configuration(carried: Mapping[str, Any], admin_public: Path | None) -> Configuration:
    """Return the configuration that Flower carried here.

    Args:
        carried: Flower's run configuration.
        admin_public: Tells whether the admin signed it; None where nobody asks.

    Raises:
        ConfigError: It was not signed by the admin, was changed since, or is for another version.
    """
    text = str(carried.get(CONFIGURATION, ""))
    if admin_public is not None:
        signature = str(carried.get(SIGNATURE, ""))
        if not signature:
            raise ConfigError(
                "the run's configuration is refused: nobody signed it; "
                "submit it with fedlearn run runtime=deployment"
            )
        if not is_signed(text, signature, admin_public):
            raise ConfigError(
                "the run's configuration is refused: it is not what this deployment's admin signed"
            )
    elif not text:
        return _composed_here(str(carried.get(OVERRIDES, "")))
    told = json.loads(text)
    if told["version"] != fedlearn.__version__:  # whatever else another version tells
        raise ConfigError(
            f"the run is for fedlearn {told['version']}, and this machine has "
            f"{fedlearn.__version__}"
        )
    return Configuration(**told)


def _composed_here(overrides: str) -> Configuration:
    """Compose what ``flwr run --run-config 'overrides="..."'`` asks for."""
    from fedlearn.config.composition import compose

    job = compose(["runtime=deployment", "runtime.connection=flwr", *overrides.split()])
    return Configuration("flwr-run", fedlearn.__version__, job.tree, job.choices)
