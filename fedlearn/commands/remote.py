"""What Hydra calls for a run on a deployment: submit it, and write down what the server tells."""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.submission import LostRunError, follow, submit
from fedlearn.review.plots import PlotsTracker
from fedlearn.run import COMPLETED
from fedlearn.tracking.console import ConsoleTracker
from fedlearn.tracking.jsonl import JsonlTracker
from fedlearn.tracking.tracker import Trackers


class RemoteTask:
    """Submits one job and follows it.

    Attributes:
        status: The exit status: 0, or 1 for a run that failed.
    """

    def __init__(self, job: Composed, folder: Folder) -> None:
        self.status = 0
        self._job = job
        self._folder = folder

    def __call__(self, config: DictConfig) -> None:
        """Run the job, with what comes of it in the directory that Hydra made for it."""
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            self._run(run_dir)
        except ConfigError as error:
            sys.stderr.write(f"{error}\n")
            self.status = 2
        except LostRunError as error:
            sys.stderr.write(f"{error}\n")
            self.status = 1

    def _run(self, run_dir: Path) -> None:
        trackers = Trackers([JsonlTracker(), PlotsTracker(), ConsoleTracker()])
        control, run_id, name = submit(self._folder, self._job)
        sys.stdout.write(f"submitted as run {run_id} ({name})\n")
        try:
            for what, value in follow(control, run_id):
                if what == "manifest":
                    config = {**self._job.tree, "choices": self._job.choices}
                    trackers.start(run_dir, config, value)
                elif what == "event":
                    trackers.event(value)
                else:
                    trackers.finish(value)
                    self.status = int(value["status"] != COMPLETED)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"run {run_id} goes on at the server; "
                f"fedlearn deploy stop {self._folder.path.name} --run {run_id} ends it\n"
            )
            raise
        finally:
            control.close()
