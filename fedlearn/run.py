"""One run, from built parts to a run directory that tells everything about it."""

import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlearn.checkpoint import Checkpoint, Checkpoints
from fedlearn.checkpointing import Checkpointing
from fedlearn.client import Client
from fedlearn.cohort import cohort_size
from fedlearn.directory_lock import held
from fedlearn.evaluation import Evaluator
from fedlearn.grids import ReachesStates, RunFailedError, restore_clients
from fedlearn.local_work import LocalWork
from fedlearn.resumption import describe_run, warnings_of
from fedlearn.server import RoundPlan, Server, make_server_app
from fedlearn.spans import span
from fedlearn.tracking.background import written_down
from fedlearn.tracking.jsonl import METRICS
from fedlearn.tracking.profile import profiled

if TYPE_CHECKING:
    from fedlearn.config.experiment import Experiment
    from fedlearn.tracking.tracker import Tracker

_log = logging.getLogger(__name__)

COMPLETED, INTERRUPTED, FAILED = "completed", "interrupted", "failed"


def execute(
    experiment: "Experiment",
    tracker: "Tracker",
    run_dir: Path,
    config: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Run an experiment to its end and return its summary.

    Whatever happens, what was measured until then is in the run directory.

    Args:
        experiment: The parts.
        tracker: Receives the events; its `finish` is called in any case.
        run_dir: An existing directory.
        config: The composed configuration, for the record.
        checkpoint: Where to go on from, the latest in `run_dir`; None for a fresh run.

    Raises:
        RunFailedError: The run could not learn (see `fedlearn.server.Server.run`), or a checkpoint
            could not be written.
        KeyboardInterrupt: The user ended it.
        InUseError: Another process writes into `run_dir`.
    """
    with profiled(run_dir) if experiment.settings.profile else nullcontext():
        return _execute(experiment, tracker, run_dir, config, checkpoint)


def _execute(
    experiment: "Experiment",
    tracker: "Tracker",
    run_dir: Path,
    config: Mapping[str, Any],
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    with span("build"):
        manifest = {**experiment.scenario.manifest(), "protocol": experiment.protocol}
        server, client = make_parts(experiment, tracker)
        if checkpoint is not None:
            server.restore(checkpoint.tensors, checkpoint.values["server"])
            server.ledger.earlier_s = checkpoint.values["seconds"]
    # it forks: trackers have threads, and a worker must not hold the directory
    with experiment.runtime.open(client) as grid, held(run_dir):
        if checkpoint is not None and isinstance(grid, ReachesStates):
            restore_clients(grid, checkpoint.turns)
        with span("track"):
            tracker.start(run_dir, config, manifest)
        about = describe_run(experiment, config, manifest["hash"], grid.description)
        checkpointing = _checkpointing(
            experiment, server, grid, about, tracker, run_dir, checkpoint
        )
        status = FAILED
        try:
            with span("track"):
                last = None if checkpoint is None else checkpoint.server_round
                told = start_event(experiment, server, manifest["hash"], grid.description, last)
                tracker.event(told)
                for warning in [] if checkpoint is None else warnings_of(checkpoint, about):
                    tracker.event({"event": "warning", "message": warning})
            app = make_server_app(server, checkpointing.after_round if checkpointing else None)
            experiment.runtime.run(app, grid)
            if checkpointing is not None:
                with span("checkpoint"):
                    checkpointing.finish()
            status = COMPLETED
        except KeyboardInterrupt:
            status = INTERRUPTED
            raise
        except RunFailedError as error:
            _log.error("%s", error)
            raise
        finally:
            if status != COMPLETED and checkpointing is not None:
                _rescue(checkpointing, tracker)
            seconds = time.perf_counter() - started
            summary = summary_of(experiment, server, manifest["hash"], status, seconds)
            with span("finish"):
                tracker.finish(summary)
    return summary


def _checkpointing(
    experiment: "Experiment",
    server: Server,
    grid: Any,
    about: Mapping[str, Any],
    tracker: "Tracker",
    run_dir: Path,
    checkpoint: Checkpoint | None,
) -> Checkpointing | None:
    """Return what takes a run's checkpoints, None where nobody asks for them."""
    every = experiment.settings.checkpoint_every
    if checkpoint is None:
        checkpoints = Checkpoints(run_dir)
        checkpoints.clear()
    else:
        checkpoints = checkpoint.source
        checkpoints.drop_later(checkpoint.server_round)
    if every is None:
        return None
    settle = partial(written_down, tracker, run_dir / METRICS)
    return Checkpointing(server, grid, checkpoints, every, about, settle)


def _rescue(checkpointing: Checkpointing, tracker: "Tracker") -> None:
    """Save the last completed round of a run that ends early; a fault is told, and no more."""
    try:
        checkpointing.finish()
    except Exception as error:  # the run has a reason of its own to end
        told = " ".join(str(error).split())
        tracker.event({"event": "warning", "message": f"the last round is not saved: {told}"})


def make_parts(experiment: "Experiment", tracker: "Tracker") -> tuple[Server, Client]:
    """Return the server and what the clients share, built from the experiment's parts."""
    settings, scenario = experiment.settings, experiment.scenario
    server = Server(
        scenario,
        experiment.schedule,
        experiment.aggregation,
        experiment.bound,
        experiment.build_model,
        Evaluator(scenario.num_classes, experiment.training.heads, experiment.runtime.testers),
        RoundPlan(
            run_seed=settings.seed,
            fraction_train=settings.fraction_train,
            fraction_evaluate=settings.fraction_evaluate,
            evaluate_every=settings.evaluate_every,
            max_failed_rounds=settings.max_failed_rounds,
            cohort=experiment.cohort,
            faults=experiment.faults,
        ),
        tracker.event,
    )
    return server, make_client(experiment)


def make_client(experiment: "Experiment") -> Client:
    """Return what clients share, built from the experiment's parts."""
    settings = experiment.settings
    return Client(
        experiment.scenario,
        experiment.schedule,
        experiment.continual,
        experiment.build_model,
        Evaluator(experiment.scenario.num_classes, experiment.training.heads),
        LocalWork(
            run_seed=settings.seed,
            epochs=settings.local.epochs,
            batch_size=settings.local.batch_size,
            steps=settings.local.steps,
            lr_schedule=experiment.lr_schedule,
            faults=experiment.faults,
        ),
    )


def start_event(
    experiment: "Experiment",
    server: Server,
    manifest_hash: str,
    executor: Mapping[str, Any],
    resumed_from: int | None = None,
) -> dict[str, Any]:
    """Return the event that opens a run, or goes on with one after a round."""
    settings, scenario = experiment.settings, experiment.scenario
    return {
        "event": "start",
        "name": settings.name,
        "rounds": experiment.schedule.num_rounds,
        "rounds_per_experience": settings.rounds_per_experience,
        "clients": scenario.num_clients,
        "cohort_size": cohort_size(scenario.num_clients, settings.fraction_train),
        "experiences": scenario.num_experiences,
        "parameters": sum(tensor.numel() for tensor in server.parameters.values()),
        "seed": settings.seed,
        "manifest_hash": manifest_hash,
        "score": scenario.score,
        "device": ",".join(map(str, experiment.runtime.devices)),
        "executor": executor,
        **({} if resumed_from is None else {"resumed_from": resumed_from}),
        **{key: experiment.choices[key] for key in ("scenario", "continual", "aggregation")},
    }


def summary_of(
    experiment: "Experiment", server: Server, manifest_hash: str, status: str, seconds: float
) -> dict[str, Any]:
    """Return what a run came to, as JSON values; the keys are part of the interface."""
    return {
        "status": status,
        "name": experiment.settings.name,
        "digest": server.digest,
        "manifest_hash": manifest_hash,
        "seed": experiment.settings.seed,
        "rounds": server.rounds,
        "clients": experiment.scenario.num_clients,
        "experiences": experiment.scenario.num_experiences,
        "score": experiment.scenario.score,
        **server.scoreboard.summary(),
        **server.ledger.summary(seconds),
        "wandb": {"mode": "none", "id": None, "dir": None},  # a tracker knows better
    }
