"""A run on a deployment: submit it, write down what the server tells, go on if the server dies."""

import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.deployment.control import Control
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.submission import DeadServerError, LostRunError, follow, new_name, submit
from fedlearn.review.plots import PlotsTracker
from fedlearn.run import COMPLETED
from fedlearn.tracking.console import ConsoleTracker
from fedlearn.tracking.jsonl import JsonlTracker, write_json
from fedlearn.tracking.tracker import Trackers

RECORD = "submission.json"
"""In the run's directory: what the deployment calls the run."""


class RemoteTask:
    """Submits one job and follows it, when Hydra calls.

    Attributes:
        status: The exit status: 0, 1 for a run that failed, 2 for one that could not be submitted.
    """

    def __init__(self, job: Composed, folder: Folder) -> None:
        self.status = 0
        self._job = job
        self._folder = folder

    def __call__(self, config: DictConfig) -> None:
        """Run the job, with what comes of it in the directory that Hydra made for it."""
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            self.status = attend(run_dir, new_name(), self._job, self._folder)
        except ConfigError as error:
            sys.stderr.write(f"{error}\n")
            self.status = 2


def name_in(run_dir: Path) -> str | None:
    """Return the name of the run that a directory is of, if it was submitted to a deployment."""
    path = run_dir / RECORD
    return json.loads(path.read_text(encoding="utf-8"))["run"] if path.is_file() else None


def attend(run_dir: Path, run: str, job: Composed, folder: Folder) -> int:
    """Submit a run and follow it to its end; return the exit status.

    Should the server's app die, the run is submitted again, and goes on from its last checkpoint,
    as long as it gets on between one death and the next.

    Args:
        run_dir: Where what the server tells is written down.
        run: The run's own name.
        job: What it is.
        folder: The deployment.

    Raises:
        ConfigError: It cannot be submitted.
        KeyboardInterrupt: The user has seen enough; the run goes on.
    """
    control = Control(folder)
    attempt = _Attempt(run_dir, job)
    try:
        while True:
            before = attempt.rounds
            run_id = submit(control, folder, job, run)
            write_json(run_dir / RECORD, {"run": run, "id": str(run_id)})
            sys.stdout.write(f"submitted as run {run_id} ({run})\n")
            sys.stdout.flush()
            try:
                return attempt.follow(control, run_id)
            except DeadServerError as error:
                if attempt.rounds <= before:
                    raise
                attempt.warn(f"{error}; it is submitted again")
    except LostRunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            f"the run goes on at the server; fedlearn deploy stop {folder.path.name} "
            f"--run {run_id} ends it\n"
        )
        raise
    finally:
        control.close()


class _Attempt:
    """What is known here of a run.

    Attributes:
        rounds: The latest that it was told to have completed.
    """

    def __init__(self, run_dir: Path, job: Composed) -> None:
        self.rounds = 0
        self._run_dir = run_dir
        self._job = job
        self._trackers = Trackers([JsonlTracker(), PlotsTracker(), ConsoleTracker()])
        self._started = False

    def follow(self, control: Control, run_id: int) -> int:
        for what, value in follow(control, run_id):
            if what == "manifest":
                self._start(value)
            elif what == "event":
                self.rounds = max(self.rounds, value.get("round", 0))
                self._trackers.event(value)
            else:
                self._trackers.finish(value)
                return int(value["status"] != COMPLETED)
        raise AssertionError("a run that is followed ends with a summary or an error")

    def warn(self, message: str) -> None:
        self._trackers.event({"event": "warning", "message": message})

    def _start(self, manifest: dict[str, Any]) -> None:
        if not self._started:
            self._started = True
            config = {**self._job.tree, "choices": self._job.choices}
            self._trackers.start(self._run_dir, config, manifest)
