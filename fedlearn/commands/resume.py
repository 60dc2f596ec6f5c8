"""``fedlearn resume``: goes on with a run from its last checkpoint, in the run's own directory."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from fedlearn.commands.run import importable
from fedlearn.config.errors import ConfigError, among, one_line

if TYPE_CHECKING:
    from fedlearn.config.composition import Composed

HELP = """\
usage: fedlearn resume RUN_DIR [KEY=VALUE ...]

Goes on with the run in RUN_DIR from its last checkpoint that is whole, to the end, and writes into
RUN_DIR: the result is what the run would have come to unbroken. The configuration is the run's own;
only keys that no number depends on can be changed:

  tracker, tracker.*, checkpoint_every, profile
  runtime (inprocess or ray), runtime.executor (serial or process), runtime.workers,
  runtime.devices, runtime.start, runtime.state_dir, runtime.address, runtime.num_cpus

A run of a deployment goes on at its server, where its checkpoints are; its SuperLink must be there.
"""

FREE = (
    "tracker",
    "checkpoint_every",
    "profile",
    "runtime",
    "runtime.executor",
    "runtime.workers",
    "runtime.devices",
    "runtime.start",
    "runtime.state_dir",
    "runtime.address",
    "runtime.num_cpus",
)
"""Keys that can be another for the rest of a run, and those of the tracker."""


def command(arguments: Sequence[str]) -> int:
    """Go on with a run and return the exit status.

    Raises:
        ConfigError: There is nothing to go on with, or not like that; the run is as it was.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0
    run_dir, overrides = Path(arguments[0]), list(arguments[1:])
    if not run_dir.is_dir():
        raise ConfigError(f"fedlearn resume {run_dir}: there is no such directory")
    for text in overrides:
        _check_free(text)
    own, config_dir = _recorded(run_dir)
    if any(text.startswith("runtime=") for text in overrides):  # another runtime has other keys
        kept = ("runtime.threads=", "runtime.formulation=")
        own = [text for text in own if not text.startswith("runtime") or text.startswith(kept)]
    with importable(Path.cwd()):
        return _resume(run_dir, [*own, *overrides], config_dir)


def _check_free(text: str) -> None:
    key, equals, _ = text.partition("=")
    if not equals:
        raise ConfigError(f"fedlearn resume: {text}: '=' is missing, expected key=value")
    key = key.lstrip("+")
    if key not in FREE and not key.startswith("tracker."):
        raise ConfigError(
            f"{text}: a run that is resumed keeps its own{among(key, FREE, 'keys to change')}"
        )


def _recorded(run_dir: Path) -> tuple[list[str], Path | None]:
    """Return the overrides that a run was started with, and its directory of choices, if any.

    Raises:
        ConfigError: `run_dir` does not say.
    """
    folder = run_dir / ".hydra"
    try:
        overrides = [str(text) for text in yaml.safe_load((folder / "overrides.yaml").read_text())]
        hydra = yaml.safe_load((folder / "hydra.yaml").read_text())["hydra"]
        sources = hydra["runtime"]["config_sources"]
        given = [Path(each["path"]) for each in sources if each["provider"] == "command-line"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            one_line(f"fedlearn resume {run_dir}: is no directory of a run: {error}")
        ) from error
    kept = [text for text in overrides if not text.startswith("manifest=")]  # is compared anyway
    return kept, given[0] if given else None


def _resume(run_dir: Path, overrides: Sequence[str], config_dir: Path | None) -> int:
    """Go on with a run, once everything that can be checked before has been."""
    from fedlearn.checkpoint import Checkpoints, NoCheckpointError
    from fedlearn.commands.remote import name_in
    from fedlearn.config.composition import compose
    from fedlearn.config.experiment import build, prepare
    from fedlearn.grids import RunFailedError
    from fedlearn.resumption import check_configuration, check_protocol
    from fedlearn.run import COMPLETED
    from fedlearn.tracking.jsonl import SUMMARY, read_summary

    if (run_dir / SUMMARY).is_file() and read_summary(run_dir)["status"] == COMPLETED:
        sys.stdout.write(f"{run_dir}: nothing to resume, the run is completed\n")
        return 0
    if (run := name_in(run_dir)) is not None:
        return _resume_there(run_dir, run, compose(overrides, config_dir))
    checkpoints = Checkpoints(run_dir)
    if not checkpoints.rounds():
        raise ConfigError(f"fedlearn resume {run_dir}: there is no checkpoint in it")
    job = compose(overrides, config_dir)
    plan = prepare(job)
    try:
        checkpoint = checkpoints.newest(plan.device)
    except NoCheckpointError as error:
        raise ConfigError(f"fedlearn resume {run_dir}: {error}") from error
    check_configuration(run_dir, checkpoint, job.tree)
    experiment = build(plan)
    check_protocol(run_dir, checkpoint, experiment.scenario.manifest()["hash"])

    from fedlearn.commands.task import run_in

    try:
        run_in(run_dir, job, experiment, checkpoint)
    except RunFailedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _resume_there(run_dir: Path, run: str, job: "Composed") -> int:
    """Have a deployment go on with a run, whose checkpoints are at its server."""
    from fedlearn.commands.remote import attend
    from fedlearn.config.experiment import prepare
    from fedlearn.runtimes.deployment import Deployment

    runtime = prepare(job).runtime
    assert isinstance(runtime, Deployment)
    return attend(run_dir, run, job, runtime.folder())
