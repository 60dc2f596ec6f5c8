"""What Hydra calls for each job: one experiment, into the directory that Hydra made for it."""

import contextlib
import shutil
import sys
import traceback
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedlearn.checkpoint import Checkpoint
from fedlearn.commands.logs import logging_to
from fedlearn.config.composition import Composed, composed
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import Experiment, build, prepare
from fedlearn.directory_lock import InUseError
from fedlearn.grids import RunFailedError
from fedlearn.review.plots import PlotsTracker
from fedlearn.run import execute
from fedlearn.tracking.background import Background
from fedlearn.tracking.console import ConsoleTracker
from fedlearn.tracking.jsonl import JsonlTracker
from fedlearn.tracking.tracker import Tracker, Trackers

LOG = "fedlearn.log"


class LoneTask:
    """Runs one job, whose parts are built already: what cannot run leaves no directory behind.

    Attributes:
        status: The exit status: 0, or 1 for a run that failed.
    """

    def __init__(self, job: Composed, experiment: Experiment) -> None:
        self.status = 0
        self._job = job
        self._experiment = experiment

    def __call__(self, config: DictConfig) -> None:
        """Run the job in the directory that Hydra made for it."""
        try:
            run_in(Path(HydraConfig.get().runtime.output_dir), self._job, self._experiment)
        except ConfigError as error:  # of what shows only once the run begins
            sys.stderr.write(f"{error}\n")
            self.status = 2
        except RunFailedError as error:
            sys.stderr.write(f"{error}\n")
            self.status = 1


class SweepTask:
    """Runs the jobs of a multirun; none that goes wrong keeps the others from their turn.

    Attributes:
        status: The worst exit status so far: 0, 1 for a run that failed, 2 for one that could not
            start.
    """

    def __init__(self) -> None:
        self.status = 0

    def __call__(self, config: DictConfig) -> None:
        """Build one job and run it in the directory that Hydra made for it."""
        hydra = HydraConfig.get()
        run_dir = Path(hydra.runtime.output_dir)
        try:
            job = composed(config, hydra.runtime.choices)
            run_in(run_dir, job, build(prepare(job)))
        except ConfigError as error:
            shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
            with contextlib.suppress(OSError):  # there is more in it than this job's configuration
                run_dir.rmdir()
            self._failed(run_dir, 2, str(error))
        except RunFailedError as error:
            self._failed(run_dir, 1, str(error))
        except Exception:  # a bug in one job says nothing about the next
            self._failed(run_dir, 1, traceback.format_exc())

    def _failed(self, run_dir: Path, status: int, message: str) -> None:
        self.status = max(self.status, status)
        sys.stderr.write(f"{run_dir.name}: {message.rstrip()}\n")


def run_in(
    run_dir: Path, job: Composed, experiment: Experiment, checkpoint: Checkpoint | None = None
) -> None:
    """Run a job in its directory.

    Args:
        run_dir: The directory; exists.
        job: The job.
        experiment: Its parts.
        checkpoint: Where to go on from, the latest in `run_dir`; None for a fresh run.

    Raises:
        ConfigError: Something that shows only now keeps it from running, such as another process
            that runs it.
        RunFailedError: See `fedlearn.run.execute`.
    """
    trackers: list[Tracker] = [
        JsonlTracker(None if checkpoint is None else checkpoint.server_round),
        PlotsTracker(),
        ConsoleTracker(),
        experiment.tracker,
    ]
    tracker = Background(Trackers(trackers))
    config = {**job.tree, "choices": job.choices}
    with logging_to(run_dir / LOG):
        try:
            execute(experiment, tracker, run_dir, config, checkpoint)
        except InUseError as error:
            raise ConfigError(str(error)) from error
