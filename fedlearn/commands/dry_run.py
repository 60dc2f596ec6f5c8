"""``dry_run=true``: what a run would cost, from its configuration and one timed batch."""

import math
import time
from dataclasses import dataclass

import torch

from fedlearn import records
from fedlearn.cohort import cohort_size
from fedlearn.cohorts.sampler import Told, candidates_at
from fedlearn.config.experiment import Experiment
from fedlearn.losses import make_loss


@dataclass(frozen=True)
class Estimate:
    """What a run would cost.

    Attributes:
        rounds: Rounds of the whole run.
        cohort: Clients that train in a round in which everybody is there.
        asked: How often a client is asked to train over the run.
        turns: Turns of all clients over the run: those who have samples to learn.
        lost: Turns whose reply the server never gets, of `turns`.
        steps: Optimiser steps of all turns.
        exact: Whether these are the run's own cohorts; where they go by losses, that only the run
            knows, they are what the sampler does while it knows none.
        parameters: Numbers in the model that training changes.
        model_bytes: What one model takes on the wire: parameters and buffers, one way.
        down_bytes: Bytes from server to clients over the run, tests at the clients included.
        up_bytes: Bytes from clients to server over the run.
        step_s: Seconds of one step on one batch, forward, backward and update.
    """

    rounds: int
    cohort: int
    asked: int
    turns: int
    lost: int
    steps: int
    exact: bool
    parameters: int
    model_bytes: int
    down_bytes: int
    up_bytes: int
    step_s: float


def estimate(experiment: Experiment) -> Estimate:
    """Return what `experiment` would cost; nothing of it is changed."""
    settings, scenario, schedule = experiment.settings, experiment.scenario, experiment.schedule
    asked, turns, lost, steps = _work(experiment)
    model = experiment.build_model()
    model_bytes = sum(
        len(array.data)
        for tensors in (records.parameters_of(model), records.buffers_of(model))
        for array in records.to_arrays(tensors).values()
    )
    return Estimate(
        rounds=schedule.num_rounds,
        cohort=cohort_size(scenario.num_clients, settings.fraction_train),
        asked=asked,
        turns=turns,
        lost=lost,
        steps=steps,
        exact=not experiment.cohort.by_losses,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_bytes=model_bytes,
        down_bytes=(asked + _tests(experiment)) * model_bytes,
        up_bytes=(turns - lost) * model_bytes,
        step_s=time_step(experiment),
    )


def _work(experiment: Experiment) -> tuple[int, int, int, int]:
    """Return what is asked of clients over the run, their turns, those lost, and their steps."""
    settings, schedule, local = experiment.settings, experiment.schedule, experiment.settings.local
    sizes = experiment.scenario.shares.sizes().numpy()
    run_seed, fraction, faults = settings.seed, settings.fraction_train, experiment.faults
    told = Told()
    asked = turns = lost = steps = 0
    for server_round in range(1, schedule.num_rounds + 1):
        here = candidates_at(server_round, schedule, sizes, run_seed, fraction)
        if here is None:
            continue
        cohort = experiment.cohort.choose(here, told)
        told.book(cohort, {})
        asked += len(cohort)
        samples = dict(zip(here.client_ids, here.samples.tolist(), strict=True))
        for client_id in cohort:
            if not samples[client_id]:
                continue
            turns += 1
            lost += faults.lost(run_seed, client_id, server_round)
            whole = local.steps or math.ceil(samples[client_id] / local.batch_size) * local.epochs
            steps += math.ceil(faults.work(run_seed, client_id, server_round) * whole)
    return asked, turns, lost, steps


def _tests(experiment: Experiment) -> int:
    """Return how often a client is asked to test the model over the run."""
    schedule, fraction = experiment.schedule, experiment.settings.fraction_evaluate
    if not fraction:
        return 0
    tests = 0
    for server_round in range(1, schedule.num_rounds + 1):
        present = set(schedule.present(server_round))
        for _, clients in schedule.finishing(server_round):
            here = len(present.intersection(clients))
            tests += cohort_size(here, fraction) if here else 0
    return tests


def time_step(experiment: Experiment) -> float:
    """Return the seconds of one optimiser step on one batch of a throw-away model.

    An untimed step comes first, so that allocating and compiling are not counted.
    """
    scenario, device = experiment.scenario, experiment.device
    model = experiment.build_model().train()
    optimizer = experiment.training.optimizer([p for p in model.parameters() if p.requires_grad])
    largest = int(scenario.shares.sizes().max())
    rows = torch.arange(min(experiment.settings.local.batch_size, largest))
    train = scenario.train
    x, y = train.inputs(rows).to(device), train.targets(rows).to(device)
    loss = make_loss(experiment.training, None)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.autograd.backward(loss(model(x), y))
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds


def describe(experiment: Experiment) -> str:
    """Return the estimate as a block of lines for the terminal."""
    settings, choices, scenario = experiment.settings, experiment.choices, experiment.scenario
    cost = estimate(experiment)
    once = _size(cost.cohort * cost.model_bytes)
    epochs, fixed = settings.local.epochs, settings.local.steps
    length = f"{epochs} epochs" if fixed is None else f"{fixed} steps"
    who = f"up to {cost.cohort} a round ({choices['cohort']})"
    about, lost = "about " * (not cost.exact), f"; {cost.lost:,} replies are lost" * (cost.lost > 0)
    lines = {
        "run": settings.name,
        "protocol": (
            f"{choices['scenario']}: {scenario.num_experiences} experiences x "
            f"{settings.rounds_per_experience} rounds = {cost.rounds} rounds"
        ),
        "clients": f"{scenario.num_clients} ({choices['partition']}), {who}",
        "turns": f"{about}{cost.turns:,} of clients with samples, {length} each{lost}",
        "steps": f"{about}{cost.steps:,} on up to {settings.local.batch_size} samples",
        "parameters": f"{cost.parameters:,} ({choices['model']})",
        "bytes a round": f"{once} down, up to {once} up",
        "bytes in all": f"{about}{_size(cost.down_bytes)} down, {_size(cost.up_bytes)} up",
        "local training": (
            f"about {_duration(cost.steps * cost.step_s)} on {experiment.device}, at "
            f"{cost.step_s * 1e3:.2f} ms a step (one batch, timed now)"
        ),
        **(
            {}
            if cost.exact
            else {"not known yet": f"losses, which cohort={choices['cohort']} goes by"}
        ),
        "not included": "memory and penalties of the continual strategy, aggregation, tests",
    }
    return "".join(f"{label:<15} {text}\n" for label, text in lines.items())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
