"""The server's side of a run: an experiment in Flower's server app, and its story as it happens."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from fedlearn.checkpoint import Checkpoints
from fedlearn.commands.logs import logging_to
from fedlearn.config.experiment import build, prepare
from fedlearn.deployment.configuration import read_configuration
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.grid import Asked, KnownKeys
from fedlearn.resumption import check_configuration, check_protocol
from fedlearn.run import COMPLETED, execute
from fedlearn.runtimes.deployment import Deployment
from fedlearn.tracking.background import Background
from fedlearn.tracking.console import ConsoleTracker
from fedlearn.tracking.jsonl import MANIFEST, SUMMARY, JsonlTracker, line_of, read_summary
from fedlearn.tracking.tracker import Event, Trackers

SERVER = "FEDLEARN_DEPLOYMENT"
"""The environment variable by which a server's app finds its deployment's folder."""

MARK = "\x1efedlearn "
"""Begins a line that tells of the run; other lines are Flower's and anybody's."""


class Story:
    """Tells a run's events on standard output, which Flower passes on to who follows the run."""

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Tell of the protocol."""
        _tell("manifest", manifest)

    def event(self, event: Event) -> None:
        """Tell an event."""
        _tell("event", event)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Tell how it ended."""
        _tell("summary", summary)


def _tell(what: str, value: Mapping[str, Any]) -> None:
    # one write, so that nothing comes between; something may come before, on the same line
    sys.stdout.write(f"{MARK}{what} {line_of(value)}\n")


def read_story(line: str) -> tuple[str, dict[str, Any]] | None:
    """Return what a line tells (``manifest``, ``event`` or ``summary``), or None for others'."""
    _, mark, told = line.partition(MARK)
    what, _, value = told.partition(" ")
    if not mark or what not in ("manifest", "event", "summary"):
        return None
    try:
        return what, json.loads(value)
    except ValueError:
        return None


def serve(grid: Grid, context: Context) -> None:
    """Run the server's side of a run in Flower's server app.

    Args:
        grid: Flower's.
        context: Carries the configuration.

    Raises:
        ConfigError: It cannot run.
        RunFailedError: It could not learn.
    """
    place = os.environ.get(SERVER)
    folder = Folder(Path(place)) if place else None
    told = read_configuration(context.run_config, folder.admin_public if folder else None)
    plan = prepare(told.composed)
    assert isinstance(plan.runtime, Deployment)
    if folder is not None:
        plan.runtime.give(grid, KnownKeys(folder.clients_by_key), folder.bell.ring)
        run_dir = folder.server / "runs" / told.run
    else:  # a SuperLink of somebody's own, without our keys
        plan.runtime.give(grid, Asked(plan.settings.num_clients))
        run_dir = Path(plan.settings.out).absolute() / f"{told.run}-{context.run_id}"
    if _told_again(run_dir):
        return
    checkpoints = Checkpoints(run_dir)
    checkpoint = checkpoints.newest(plan.device) if checkpoints.rounds() else None
    experiment = build(plan)
    if checkpoint is not None:
        check_configuration(run_dir, checkpoint, told.tree)
        check_protocol(run_dir, checkpoint, experiment.scenario.manifest()["hash"])
    run_dir.mkdir(parents=True, exist_ok=True)
    teller = Story() if folder else ConsoleTracker()
    written = JsonlTracker(None if checkpoint is None else checkpoint.server_round)
    tracker = Background(Trackers([written, experiment.tracker, teller]))
    config = {**told.tree, "choices": told.choices}
    with logging_to(run_dir / "fedlearn.log"):
        execute(experiment, tracker, run_dir, config, checkpoint)


def _told_again(run_dir: Path) -> bool:
    """Tell how a run has ended, if it has completed; return whether it has."""
    if not (run_dir / SUMMARY).is_file():
        return False
    summary = read_summary(run_dir)
    if summary["status"] != COMPLETED:
        return False
    story = Story()
    story.start(run_dir, {}, json.loads((run_dir / MANIFEST).read_text(encoding="utf-8")))
    story.finish(summary)
    return True
