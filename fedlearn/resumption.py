"""What a checkpoint says of its run, and whether another process can go on from it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import fedlearn
from fedlearn.checkpoint import Checkpoint
from fedlearn.config.errors import ConfigError

if TYPE_CHECKING:
    from fedlearn.config.experiment import Experiment

UNRELATED = (
    "runtime",
    "tracker",
    "out",
    "name",
    "dry_run",
    "profile",
    "manifest",
    "checkpoint_every",
    "choices",
)
"""Keys of a configuration that no number depends on; of the runtime, see `fingerprint`."""

VECTORIZED = "vectorized"


def fingerprint(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the sha256 of each part of a configuration that numbers depend on.

    One after another, in processes or on Ray, clients come to the same numbers bit by bit, so of
    the runtime only threads count, and whether cohorts are trained as one program.
    """
    runtime = tree.get("runtime", {})  # benchmarks run without a configuration
    parts = {key: value for key, value in tree.items() if key not in UNRELATED}
    parts["runtime.threads"] = runtime.get("threads")
    together = runtime.get("executor") == VECTORIZED
    parts["runtime.executor"] = together and ["vectorized", runtime.get("formulation")]
    return {
        key: hashlib.sha256(json.dumps(part, sort_keys=True, default=str).encode()).hexdigest()
        for key, part in parts.items()
    }


def describe_run(
    experiment: "Experiment",
    config: Mapping[str, Any],
    manifest_hash: str,
    executor: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a checkpoint says of its run, as JSON values.

    Args:
        experiment: The run's parts.
        config: Its composed configuration.
        manifest_hash: Of its protocol.
        executor: What runs its clients (`fedlearn.runtimes.serial.Executor.description`).
    """
    return {
        "manifest_hash": manifest_hash,
        "configuration": fingerprint(config),
        "surroundings": surroundings(experiment, executor),
    }


def surroundings(experiment: "Experiment", executor: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the last bits of numbers may depend on beside the configuration."""
    together = executor.get("executor") == VECTORIZED
    return {
        "fedlearn": fedlearn.__version__,
        "torch": str(torch.__version__),
        "flwr": metadata.version("flwr"),
        "processor": platform.machine(),
        "device": experiment.device.type,
        "workers": executor.get("workers") if together else None,
    }


def check_configuration(run_dir: Path, checkpoint: Checkpoint, tree: Mapping[str, Any]) -> None:
    """Check that a configuration is the one that a run began with, where numbers depend on it.

    Raises:
        ConfigError: It is another.
    """
    before, now = checkpoint.values["configuration"], fingerprint(tree)
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if different:
        raise ConfigError(
            f"{run_dir}: cannot be resumed: its configuration has changed in "
            f"{', '.join(different)}, and numbers depend on that"
        )


def check_protocol(run_dir: Path, checkpoint: Checkpoint, manifest_hash: str) -> None:
    """Check that what was built is the protocol of a run.

    Raises:
        ConfigError: It is another.
    """
    before = checkpoint.values["manifest_hash"]
    if before != manifest_hash:
        raise ConfigError(
            f"{run_dir}: cannot be resumed: its data are not what they were: manifest hash "
            f"{manifest_hash}, was {before}"
        )


def warnings_of(checkpoint: Checkpoint, about: Mapping[str, Any]) -> list[str]:
    """Return what a user should know of going on from a checkpoint, one line each.

    Args:
        checkpoint: Where from.
        about: What this run's checkpoints say of it (`describe_run`).
    """
    before, now = checkpoint.values["surroundings"], about["surroundings"]
    other = [f"{key} {now[key]} (was {before[key]})" for key in now if now[key] != before[key]]
    told = [f"{each}; it is left out" for each in checkpoint.damaged]
    if other:
        told.append(f"the last bits may differ from an unbroken run's: {', '.join(other)}")
    return told
