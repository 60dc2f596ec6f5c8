"""Many clients' turns of one round as columns, for strategies that train a cohort as one program.

What stands for one client in `fedlearn.types.Turn` and `fedlearn.types.Report` has one entry a
client here. `Turns.turn` and `Turns.experience` give the single objects back, for what needs them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlearn.deferred import Deferred
from fedlearn.types import Experience, Plain, Scenario, State, Turn

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

Formulation = Literal["auto", "deferred", "chain", "vmap", "loop"]
"""How a cohort is trained as one program: ``chain``, by hand-derived kernels; ``deferred``, by such
that change weights at the end of a turn only, wherever possible; ``vmap``; ``loop``, client by
client; ``auto`` for the fastest that fits."""
FORMULATIONS: tuple[Formulation, ...] = get_args(Formulation)

NEVER = -1
"""In `Turns.last`: the client has not trained yet."""


@dataclass(frozen=True, eq=False)
class Turns:
    """The turns of n clients in one round; none of them is idle.

    Attributes:
        scenario: Whose clients they are.
        run_seed: The run's seed.
        server_round: 1-based.
        epochs: Local epochs, at least 1.
        batch_size: Samples a step, at least 1.
        steps: Optimiser steps of a turn, in place of whole epochs; None for `epochs`.
        config: Scalars that the aggregation sent, the same to all.
        client_ids: (n,) int64, ascending.
        experiences: (n,) int64, the index of each client's present experience, which has samples.
        last: (n,) int64, the index of the experience that each last trained on; `NEVER` for none.
        first_epochs: (n,) int64; see `fedlearn.types.Turn.first_epoch`.
        lr_factors: (n,) float64, greater than 0.
        progress: (n,) float64, in [0, 1).
        works: (n,) float64, in (0, 1].
    """

    scenario: Scenario
    run_seed: int
    server_round: int
    epochs: int
    batch_size: int
    steps: int | None
    config: Mapping[str, Plain]
    client_ids: Integers
    experiences: Integers
    last: Integers
    first_epochs: Integers
    lr_factors: Floats
    progress: Floats
    works: Floats

    def __len__(self) -> int:
        return len(self.client_ids)

    @property
    def begins(self) -> Integers:
        """(n,): where in ``scenario.shares.rows`` each present experience's rows begin."""
        return self._at(self.scenario.shares.begins)

    @property
    def sizes(self) -> Integers:
        """(n,): samples of each present experience, at least 1."""
        return self._at(self.scenario.shares.ends) - self.begins

    def _at(self, table: Tensor) -> Integers:
        found: Integers = table.numpy()[self.client_ids, self.experiences].astype(np.int64)
        return found

    def num_steps(self) -> Integers:
        """Return (n,): the optimiser steps of each turn; see `fedlearn.types.Turn.num_steps`."""
        batches = -(-self.sizes // self.batch_size)
        whole = self.epochs * batches if self.steps is None else np.full(len(self), self.steps)
        steps: Integers = np.ceil(self.works * whole).astype(np.int64)
        return steps

    def select(self, places: Integers | slice) -> "Turns":
        """Return the turns at `places`."""
        columns = (
            "client_ids",
            "experiences",
            "last",
            "first_epochs",
            "lr_factors",
            "progress",
            "works",
        )
        return replace(self, **{name: getattr(self, name)[places] for name in columns})

    def columns(self) -> dict[str, Any]:
        """Return everything but the scenario, for another process that has it."""
        return {each.name: getattr(self, each.name) for each in fields(self)[1:]}

    def experience(self, at: int) -> Experience:
        """Return the present experience of the client at place `at`."""
        return self.scenario.experience(int(self.client_ids[at]), int(self.experiences[at]))

    def previous(self, at: int) -> Experience | None:
        """Return what the client at place `at` has to consolidate now; None for nothing."""
        last = int(self.last[at])
        if last in (NEVER, int(self.experiences[at])):
            return None
        return self.scenario.experience(int(self.client_ids[at]), last)

    def stream(self, at: int) -> Callable[[int], Experience]:
        """Return the stream of the client at place `at`: an experience by its index."""
        return partial(self.scenario.experience, int(self.client_ids[at]))

    def turn(self, at: int) -> Turn:
        """Return the turn of the client at place `at`."""
        return Turn(
            run_seed=self.run_seed,
            client_id=int(self.client_ids[at]),
            server_round=self.server_round,
            first_epoch=int(self.first_epochs[at]),
            epochs=self.epochs,
            batch_size=self.batch_size,
            previous=self.previous(at),
            config=self.config,
            steps=self.steps,
            lr_factor=float(self.lr_factors[at]),
            progress=float(self.progress[at]),
            work=float(self.works[at]),
        )


@dataclass
class CohortReport:
    """What n turns did, in their order.

    Attributes:
        parameters: Every parameter of the model after the turns, by name, (n, *shape), or what they
            follow from; those of a turn that diverged mean nothing. They may be overwritten by the
            next call.
        losses: (n,) float64; see `fedlearn.types.Report.loss`.
        steps: (n,) int64, optimiser steps.
        replayed: (n,) int64, samples that came from memory.
        states: One a client; empty where the strategy keeps nothing.
        buffers: Every buffer of the model after the turns, (n, *shape); empty where they are still
            as received.
        metrics: Anything else worth tracking, (n,) float64 each.
        diverged: Why a turn must not count, by place.
    """

    parameters: Mapping[str, Tensor | Deferred]
    losses: Floats
    steps: Integers
    replayed: Integers
    states: Sequence[State] = ()
    buffers: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Floats] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)


class CohortTrainer(Protocol):
    """Trains many clients of one model as one program.

    Attributes:
        formulation: How, one of `FORMULATIONS`, but not ``"auto"``.
        why: Why so, in a line.
        chunk: How many clients it is fastest at, at least 1; it takes any number.
        keeps_state: Whether clients keep anything between turns.
    """

    formulation: str
    why: str
    chunk: int
    keeps_state: bool

    def train(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        turns: Turns,
        states: Sequence[State],
    ) -> CohortReport:
        """Train the clients of `turns`, each from the received weights.

        Args:
            parameters: The received parameters by name. Not modified.
            buffers: The received buffers by name. Not modified.
            turns: Who, on what, and how long.
            states: What each client kept; empty where `keeps_state` is False. Not modified.
        """
        ...


class CohortStrategy(Protocol):
    """A continual strategy that can train a cohort as one program."""

    def cohort_trainer(
        self, model: nn.Module, device: torch.device, formulation: str = "auto"
    ) -> CohortTrainer:
        """Return what trains clients of `model`, built once a process.

        Args:
            model: Holds the architecture; its weights mean nothing.
            device: Where it is.
            formulation: How, one of `FORMULATIONS`.

        Raises:
            ValueError: Clients of such a model, or with such settings, cannot be stacked; one line.
        """
        ...
