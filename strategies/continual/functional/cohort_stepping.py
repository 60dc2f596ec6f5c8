"""Which way the clients of a cohort take their steps, and which of them take them together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedlearn.turns import Turns
from strategies.continual.functional.chain import Chain
from strategies.continual.functional.chain_deferral import Deferral, Defers, fitting, pays
from strategies.continual.functional.cohort import stack
from strategies.continual.functional.cohort_consolidation import class_balance
from strategies.continual.functional.cohort_gradients import ByChain, Gradients
from strategies.continual.functional.cohort_pieces import Piece, pieces
from strategies.continual.functional.cohort_steps import (
    Deferring,
    Descending,
    Following,
    descends,
)
from strategies.continual.functional.optimizers import Optimizer
from strategies.continual.functional.past import Past
from strategies.continual.functional.slopes import is_mean
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.step import Step
from strategies.continual.functional.trees import Tree

if TYPE_CHECKING:
    from strategies.continual.functional.continual import FunctionalContinual


class Stepping:
    """Makes what takes steps."""

    def __init__(
        self,
        strategy: "FunctionalContinual",
        step: Step[Any],
        gradients: Gradients,
        model: nn.Module,
        chunk: int,
        device: torch.device,
    ) -> None:
        """Prepare.

        Args:
            strategy: How clients learn.
            step: What a step is, at the full learning rate.
            gradients: Of K clients.
            model: Theirs.
            chunk: How many take steps together, each with weights of its own.
            device: Where.
        """
        self._strategy, self._step, self._gradients = strategy, step, gradients
        self._shapes = {name: each.shape for name, each in model.named_parameters()}
        self._chunk, self._device = chunk, device
        self._descends = descends(strategy.optimizer, strategy.training, strategy.method)
        self._room: dict[str, Tensor] = {}

    def pieces(
        self, turns: Turns, pasts: Sequence[Past], most: int, defers: Defers
    ) -> list[tuple[Piece, bool]]:
        """Return a cohort in pieces, and of each whether its updates are deferred.

        Args:
            turns: All clients'.
            pasts: What each brings along; empty where nobody keeps anything.
            most: The most clients of a piece.
            defers: When updates are deferred where they can be.
        """
        found: list[tuple[Piece, bool]] = []
        for group in pieces(turns, pasts, self._strategy.rehearsal):
            rows = self._deferred_rows(group, defers)
            fit = fitting(self._chain, self._shapes, rows) if rows else self._chunk
            found += ((piece, rows > 0) for piece in group.cut(min(most, fit)))
        return found

    def _deferred_rows(self, group: Piece, defers: Defers) -> int:
        """Return how many samples a client has to remember at most; 0 to defer nothing."""
        method, turns, pasts = self._strategy.method, group.turns, group.pasts
        if defers == "never" or _proximal_mu(turns) or not self._descends:
            return 0
        if pasts and pasts[0].memory is not None and method.springs(pasts[0].memory):
            return 0
        samples = min(turns.batch_size, int(turns.sizes.max()))
        if group.kept:
            assert self._strategy.rehearsal is not None
            samples += self._strategy.rehearsal.batch_size or turns.batch_size
        rows = samples * int(turns.num_steps().max())
        return rows if defers == "always" or pays(self._chain, self._shapes, rows) else 0

    def deferring(self, piece: Piece, received: Mapping[str, Tensor], rows: int) -> Deferring:
        """Return what takes the steps of a piece whose updates are deferred.

        Args:
            piece: The clients.
            received: The parameters that they were sent.
            rows: How many samples each has, all steps together.
        """
        assert isinstance(self._gradients, ByChain)
        rate, clients = self._optimizer(piece.turns).lr, len(piece.places)
        deferral = Deferral(self._chain, received, clients, rows, rate, self._room)
        return Deferring(self._gradients, deferral, self._taught(piece), self._balance(piece.turns))

    def stepper(self, piece: Piece, params: Tree) -> Descending | Following:
        """Return what takes the steps of a piece.

        Args:
            piece: The clients.
            params: Their weights (K, *shape), as received; to be modified.
        """
        turns, mu = piece.turns, _proximal_mu(piece.turns)
        proximal = None
        if mu:
            anchor = {name: each[0].clone() for name, each in params.items()}
            proximal = Spring(mu / 2, anchor)
        step = replace(self._step, optimizer=self._optimizer(turns), proximal=proximal)
        balance = self._balance(turns)
        if not (isinstance(self._gradients, ByChain) and self._descends):
            memory = stack([each.memory for each in piece.pasts]) if _has_memory(piece) else None
            return Following(step, self._gradients, params, memory, balance)
        springs: list[Sequence[Spring]] = [() for _ in piece.places]
        if _has_memory(piece):
            springs = [self._strategy.method.springs(each.memory) for each in piece.pasts]
        if proximal is not None:
            springs = [(*own, proximal) for own in springs]
        taught = self._taught(piece)
        return Descending(step, self._gradients, params, taught, balance, springs, self._room)

    def _taught(self, piece: Piece) -> Any:
        """Return the stacked memories of a piece, as far as the loss needs them; else None."""
        if not _has_memory(piece) or is_mean(self._strategy.method):
            return None
        return stack([each.memory for each in piece.pasts])

    def _optimizer(self, turns: Turns) -> Optimizer:
        """Return the optimiser at the learning rate of these turns, the same for all."""
        return self._strategy.optimizer.scaled(float(turns.lr_factors[0]))

    def _balance(self, turns: Turns) -> Tensor | None:
        """Return what a sample of each class weighs, (K, C); None for 1."""
        training = self._strategy.training
        if training.class_balance is None:
            return None
        experiences = [turns.experience(at) for at in range(len(turns))]
        return class_balance(training, experiences, self._device)

    @property
    def _chain(self) -> Chain:
        assert isinstance(self._gradients, ByChain)
        return self._gradients.chain


def _proximal_mu(turns: Turns) -> float:
    return float(turns.config.get("proximal-mu", 0.0))  # type: ignore[arg-type]


def _has_memory(piece: Piece) -> bool:
    return bool(piece.pasts) and piece.pasts[0].memory is not None
