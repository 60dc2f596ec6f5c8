"""Rounds of a trainer in this process, or in forked ones that last for the whole run."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Semaphore

import torch
from speed.plan import Plan
from speed.programs.trainer import MakeTrainer, views_of
from torch import Tensor

PATIENCE_S = 600.0
"""How long a round may take before its workers are believed dead."""

OnRound = Callable[[], object]


def run(plan: Plan, make: MakeTrainer, processes: int, on_round: OnRound) -> list[Tensor]:
    """Return the final weights.

    Args:
        plan: What to do.
        make: Makes the trainer, in the process that uses it.
        processes: 1 for this one; else so many forks, each with an equal share of the cohort, that
            adds up its clients by itself.
        on_round: Called once a round's weights are known.
    """
    flat = torch.cat([each.flatten() for each in plan.weights])
    rounds = _alone if processes == 1 else _forked
    rounds(plan, make, processes, flat, on_round)
    shapes = [tuple(each.shape) for each in plan.weights]
    return views_of(flat, shapes)


def _alone(plan: Plan, make: MakeTrainer, _: int, flat: Tensor, on_round: OnRound) -> None:
    train, total = make(plan), torch.empty_like(flat)
    rounds, size = plan.cohorts.shape
    for server_round in range(rounds):
        total.zero_()
        train(flat, server_round, range(size), total)
        torch.mul(total, 1 / size, out=flat)
        on_round()


def _forked(plan: Plan, make: MakeTrainer, processes: int, flat: Tensor, on_round: OnRound) -> None:
    fork = multiprocessing.get_context("fork")
    weights, totals = flat.clone(), torch.empty(processes, len(flat))
    for shared in (weights, totals):
        shared.share_memory_()  # type: ignore[no-untyped-call]
    rounds, size = plan.cohorts.shape
    gates = [fork.Semaphore(0) for _ in range(processes)]
    done = fork.Semaphore(0)
    ends = [size * index // processes for index in range(processes + 1)]
    workers = [
        fork.Process(
            target=_work,
            args=(plan, make, weights, totals[index], gates[index], done),
            kwargs={"places": range(ends[index], ends[index + 1])},
            daemon=True,
        )
        for index in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in range(rounds):
        for gate in gates:
            gate.release()
        for _ in workers:
            if not done.acquire(timeout=PATIENCE_S):
                raise RuntimeError("a worker does not answer")
        torch.mul(totals.sum(0), 1 / size, out=weights)
        on_round()
    for gate, worker in zip(gates, workers, strict=True):
        gate.release()
        worker.join()
    flat.copy_(weights)


def _work(
    plan: Plan,
    make: MakeTrainer,
    weights: Tensor,
    total: Tensor,
    gate: Semaphore,
    done: Semaphore,
    places: range,
) -> None:
    torch.set_num_threads(1)  # a fork cannot use the threads that its parent may have had
    train = make(plan)
    for server_round in range(len(plan.cohorts)):
        gate.acquire()
        total.zero_()
        train(weights, server_round, places, total)
        done.release()
    gate.acquire()  # its memory is looked at after the last round
