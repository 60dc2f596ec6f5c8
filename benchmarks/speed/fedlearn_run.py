"""Runs a workload in fedlearn: ``python -m speed.fedlearn_run PLAN WEIGHTS --data FILE``.

What runs is what ``fedlearn run`` runs, with its files and its terminal output; only the plots at a
run's end and the uploads to W&B are left out.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from speed.plan import read_plan
from speed.planning import CONF, overrides
from speed.stopwatch import Stopwatch, report_skipped

from fedlearn import run
from fedlearn.client import Client
from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, prepare
from fedlearn.server import Server
from fedlearn.tracking.background import Background
from fedlearn.tracking.console import ConsoleTracker
from fedlearn.tracking.jsonl import JsonlTracker
from fedlearn.tracking.tracker import Trackers


class RoundWatch:
    """Takes the time of each round's end, and passes everything on, as a run's own tracker does.

    A server's tests of the model do not count.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._tracker = Background(Trackers([JsonlTracker(), ConsoleTracker()]))

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Pass on."""
        self._tracker.start(run_dir, config, manifest)

    def event(self, event: Mapping[str, Any]) -> None:
        """Note a round's end, and pass on."""
        if event["event"] == "round":
            self._watch.round_ends(untimed=event["time"]["evaluate_s"])
        self._tracker.event(event)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Pass on."""
        self._tracker.finish(summary)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--engine", default="functional")
    parser.add_argument("--executor", default="serial")
    parser.add_argument("--continual", nargs="+", default=["continual=naive"])
    arguments = parser.parse_args()
    work = read_plan(arguments.plan).workload
    watch = Stopwatch(work.rounds)
    with tempfile.TemporaryDirectory() as folder:
        chosen = overrides(
            work,
            arguments.data,
            Path(folder),
            arguments.engine,
            arguments.executor,
            arguments.continual,
        )
        try:
            experiment = build(prepare(compose(chosen, CONF)))
        except ConfigError as error:
            report_skipped(str(error))
            return
        servers: list[Server] = []

        def keep_server(*given: Any) -> tuple[Server, Client]:
            parts = make_parts(*given)
            servers.append(parts[0])
            return parts

        # a run tells its weights' digest only, and here their values are to be checked
        make_parts = run.make_parts
        tracker = RoundWatch(watch)
        with patch.object(run, "make_parts", keep_server):
            run.execute(experiment, tracker, Path(folder), {})
        watch.report(servers[0].parameters.values(), arguments.weights)


if __name__ == "__main__":
    main()
