"""``dry_run=true``: what a run would cost, from its configuration and one timed batch."""

import math
import time
from dataclasses import dataclass

import torch

from fedlearn import records
from fedlearn.cohort import cohort_size, sample_clients
from fedlearn.config.experiment import Experiment
from fedlearn.losses import make_loss


@dataclass(frozen=True)
class Estimate:
    """What a run would cost.

    Attributes:
        rounds: Rounds of the whole run.
        cohort: Clients that train in a round.
        turns: Turns of all clients over the run: those who have samples to learn.
        steps: Optimiser steps of all turns.
        parameters: Numbers in the model that training changes.
        model_bytes: What one model takes on the wire: parameters and buffers, one way.
        down_bytes: Bytes from server to clients over the run, tests at the clients included.
        up_bytes: Bytes from clients to server over the run.
        step_s: Seconds of one step on one batch, forward, backward and update.
    """

    rounds: int
    cohort: int
    turns: int
    steps: int
    parameters: int
    model_bytes: int
    down_bytes: int
    up_bytes: int
    step_s: float


def estimate(experiment: Experiment) -> Estimate:
    """Return what `experiment` would cost; nothing of it is changed."""
    settings, scenario, schedule = experiment.settings, experiment.scenario, experiment.schedule
    size = cohort_size(scenario.num_clients, settings.fraction_train)
    testers = settings.fraction_evaluate and cohort_size(
        scenario.num_clients, settings.fraction_evaluate
    )
    turns, steps = _work(experiment)
    model = experiment.build_model()
    model_bytes = sum(
        len(array.data)
        for tensors in (records.parameters_of(model), records.buffers_of(model))
        for array in records.to_arrays(tensors).values()
    )
    return Estimate(
        rounds=schedule.num_rounds,
        cohort=size,
        turns=turns,
        steps=steps,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_bytes=model_bytes,
        down_bytes=int(schedule.num_rounds * size + schedule.num_experiences * testers)
        * model_bytes,
        up_bytes=turns * model_bytes,
        step_s=time_step(experiment),
    )


def _work(experiment: Experiment) -> tuple[int, int]:
    """Return the turns and the steps of all clients over the run."""
    settings, scenario, schedule = experiment.settings, experiment.scenario, experiment.schedule
    sizes, clients = scenario.shares.sizes(), range(scenario.num_clients)
    turns = steps = 0
    for server_round in range(1, schedule.num_rounds + 1):
        for client_id in sample_clients(
            settings.seed, "cohort", server_round, clients, settings.fraction_train
        ):
            size = int(sizes[client_id, schedule.experience(client_id, server_round)])
            turns += size > 0
            whole = math.ceil(size / settings.local.batch_size) * settings.local.epochs
            steps += whole if settings.local.steps is None or not size else settings.local.steps
    return turns, steps


def time_step(experiment: Experiment) -> float:
    """Return the seconds of one optimiser step on one batch of a throw-away model.

    An untimed step comes first, so that allocating and compiling are not counted.
    """
    scenario, device = experiment.scenario, experiment.device
    model = experiment.build_model().train()
    optimizer = experiment.training.optimizer([p for p in model.parameters() if p.requires_grad])
    largest = int(scenario.shares.sizes().max())
    rows = torch.arange(min(experiment.settings.local.batch_size, largest))
    x, y = scenario.train.inputs(rows), scenario.train.y[rows]
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
    lines = {
        "run": settings.name,
        "protocol": (
            f"{choices['scenario']}: {scenario.num_experiences} experiences x "
            f"{settings.rounds_per_experience} rounds = {cost.rounds} rounds"
        ),
        "clients": f"{scenario.num_clients} ({choices['partition']}), {cost.cohort} a round",
        "turns": f"{cost.turns:,} of clients with samples, {length} each",
        "steps": f"{cost.steps:,} on up to {settings.local.batch_size} samples",
        "parameters": f"{cost.parameters:,} ({choices['model']})",
        "bytes a round": f"{once} down, up to {once} up",
        "bytes in all": f"{_size(cost.down_bytes)} down, {_size(cost.up_bytes)} up",
        "local training": (
            f"about {_duration(cost.steps * cost.step_s)} on {experiment.device}, at "
            f"{cost.step_s * 1e3:.2f} ms a step (one batch, timed now)"
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
