"""Trains the clients of a round as one program: a functional strategy's turns, stacked.

The numbers are those of `FunctionalContinual.train_turn`, client by client: the same draws, batches
and formulas, in other kernels.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlearn.losses import Loss, make_loss
from fedlearn.spans import span
from fedlearn.turns import CohortReport, Integers, Turns
from fedlearn.types import State
from strategies.continual.functional.chain import Chain
from strategies.continual.functional.chain_deferral import (
    TOGETHER,
    Defers,
)
from strategies.continual.functional.cohort import Stateless
from strategies.continual.functional.cohort_augmentation import augmented
from strategies.continual.functional.cohort_batches import batches, num_samples
from strategies.continual.functional.cohort_consolidation import Entry
from strategies.continual.functional.cohort_draws import (
    Domains,
    Replay,
    present_draws,
    replay_draws,
)
from strategies.continual.functional.cohort_gradients import ByChain, ByTransform, Gradients
from strategies.continual.functional.cohort_measures import Measures
from strategies.continual.functional.cohort_pieces import Piece
from strategies.continual.functional.cohort_stepping import Stepping
from strategies.continual.functional.cohort_steps import (
    Deferring,
    Descending,
    Following,
)
from strategies.continual.functional.past import Past, keep, recall
from strategies.continual.functional.slopes import Handed
from strategies.continual.functional.step import Step, by_transform
from strategies.continual.functional.trees import Tree

if TYPE_CHECKING:
    from strategies.continual.functional.continual import FunctionalContinual


class StackedTrainer:
    """Trains clients as one stack.

    Attributes:
        formulation: See `fedlearn.turns.CohortTrainer`, as `why`, `chunk` and `keeps_state`.
    """

    def __init__(
        self,
        strategy: "FunctionalContinual",
        model: nn.Module,
        device: torch.device,
        formulation: str,
        why: str,
        chunk: int,
        defers: Defers = "never",
    ) -> None:
        """Prepare to train clients of `model`.

        Args:
            strategy: How they learn.
            model: One that can be stacked; a chain unless ``formulation="vmap"``.
            device: Where.
            formulation: ``"chain"``, ``"deferred"`` or ``"vmap"``.
            why: Why so, in a line.
            chunk: How many clients run at once, each with weights of its own.
            defers: When updates are deferred where they can be; of a chain that `can_defer`.
        """
        self.formulation, self.why = formulation, why
        self.chunk = chunk if defers == "never" else max(chunk, TOGETHER)
        self._defers = defers
        self.keeps_state = strategy.keeps_state
        self._strategy, self._training = strategy, strategy.training
        self._device = device
        self._model = copy.deepcopy(model).to(device).train()
        self._stateless = Stateless(self._model, self._training)
        self._criterion = _on(make_loss(self._training, None), device)
        step = self._prototype()
        self._gradients = self._make_gradients(step)
        self._stepping = Stepping(strategy, step, self._gradients, self._model, chunk, device)
        self._entry = Entry(
            self._training,
            strategy.method,
            strategy.rehearsal,
            strategy.anchor,
            self._gradients,
            self._stateless,
            chunk,
            device,
        )
        self._avoid_one = any(isinstance(each, _BatchNorm) for each in self._model.modules())
        self._trainable = {
            name: each for name, each in self._model.named_parameters() if each.requires_grad
        }
        own = {
            id(each): name
            for name, each in (*self._model.named_parameters(), *self._model.named_buffers())
        }
        kept = self._model.state_dict(keep_vars=True)
        self._names = {name: own[id(each)] for name, each in kept.items()}
        self._fixed = [
            (name, each.detach())
            for name, each in (*self._model.named_parameters(), *self._model.named_buffers())
            if not each.requires_grad
        ]
        self._shapes = {name: each.shape for name, each in self._model.named_parameters()}
        self._homes: dict[str, Tensor] = {}
        self._scratch: dict[str, Tensor] = {}

    def train(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        turns: Turns,
        states: Sequence[State],
    ) -> CohortReport:
        """Train the clients of `turns`; see `fedlearn.turns.CohortTrainer`."""
        received = {
            name: tensor.to(self._device)
            for name, tensor in (*parameters.items(), *buffers.items())
        }
        self._load(received)
        report = self._train(received, turns, states, self._defers)
        if self._defers != "never" and not np.isfinite(report.losses).all():
            # Products of inputs overflow before weights do, so these have the last word.
            report = self._train(received, turns, states, "never")
        return report

    def _train(
        self,
        received: Mapping[str, Tensor],
        turns: Turns,
        states: Sequence[State],
        defers: Defers,
    ) -> CohortReport:
        n = len(turns)
        report = CohortReport(
            {},
            losses=np.zeros(n),
            steps=turns.num_steps(),
            replayed=np.zeros(n, dtype=np.int64),
        )
        pasts: Sequence[Past] = ()
        after: list[State] = list(states) if self.keeps_state else []
        whole: Tree = {}
        if self.keeps_state:
            whole = {name: received[own].clone() for name, own in self._names.items()}
            brought = [recall(each, self._strategy.method, self._device) for each in states]
            with span("consolidate"):
                pasts = self._entry(brought, turns, whole)
        found = self._stepping.pieces(turns, pasts, self.chunk, defers)
        trained: Tree = {}
        if len(found) > 1 or not found[0][1] or not found[0][0].in_a_row or self._keeps_weights:
            if self._keeps_weights:  # states will hold them
                self._homes = {}
            trained = _first(self._homes, self._trainable, n)
        report.parameters = {
            name: trained[name] if name in trained else received[name].expand(n, *shape)
            for name, shape in self._shapes.items()
        }
        for piece, deferred in found:
            self._train_piece(piece, deferred, received, trained, report, after, whole)
        report.states = after
        return report

    # One piece

    def _train_piece(
        self,
        piece: Piece,
        deferred: bool,
        received: Mapping[str, Tensor],
        trained: Tree,
        report: CohortReport,
        after: list[State],
        whole: Tree,
    ) -> None:
        turns, places = piece.turns, piece.places
        if not trained:
            params: Tree = {}
        elif piece.in_a_row:
            window = slice(int(places[0]), int(places[-1]) + 1)
            params = {name: each[window] for name, each in trained.items()}
        else:
            params = _first(self._scratch, self._trainable, len(places))
        for name, each in params.items():
            each.copy_(received[name])
        domains = Domains(turns, self._training.heads is not None)
        with span("draw"):
            present, clock = present_draws(turns, domains, self._avoid_one)
            replay: Replay | None = None
            if piece.kept:
                assert self._strategy.rehearsal is not None
                replay = replay_draws(turns, clock, piece.kept, self._strategy.rehearsal, domains)
                counted = np.where(clock.active, replay.draws.sizes, 0)
                report.replayed[places] = counted.sum(0)
        feed = batches(
            turns.scenario.train,
            clock.steps,
            present,
            None if replay is None else replay.draws,
            self._device,
        )
        if self._training.augment is not None:
            feed = augmented(feed, self._training.augment, turns, present, replay, clock)
        stepper: Descending | Deferring | Following
        if deferred:
            rows = num_samples(clock.steps, present, None if replay is None else replay.draws)
            stepper = self._stepping.deferring(piece, received, rows)
        else:
            stepper = self._stepping.stepper(piece, params)
        like = next(iter(self._trainable.values()))
        losses = like.new_zeros(clock.passes.shape)
        lengths = torch.zeros_like(losses) if self._training.gradient_metrics else None
        with span("steps"):
            for step, batch in enumerate(feed):
                row = losses[step, : batch.clients]
                stepper(batch, row, None if lengths is None else lengths[step, : batch.clients])
            memories = stepper.end()
        if isinstance(stepper, Deferring):
            results = stepper.deferral.results()
            if not trained:
                report.parameters = {**report.parameters, **results}
            for name, home in params.items():
                if name in results:
                    results[name].stack(home)
        if trained and not piece.in_a_row:
            at = torch.from_numpy(places).to(self._device)
            for name, each in params.items():
                trained[name].index_copy_(0, at, each)
        measures = Measures(
            losses.double().cpu().numpy(),
            None if lengths is None else lengths.double().cpu().numpy(),
            present.sizes,
            clock.passes,
            clock.steps,
        )
        self._measure(measures, places, report)
        if self.keeps_state:
            states = self._states(piece, trained, memories, whole)
            for at, state in zip(places, states, strict=True):
                if int(at) not in report.diverged:
                    after[at] = state

    def _measure(self, measures: Measures, places: Integers, report: CohortReport) -> None:
        report.losses[places] = measures.mean_losses()
        for key, values in measures.norms().items():
            report.metrics.setdefault(key, np.zeros(len(report.losses)))[places] = values
        for at, reason in measures.diverged(self._training.max_loss).items():
            report.diverged[int(places[at])] = reason

    @property
    def _keeps_weights(self) -> bool:
        return self._strategy.consolidates == "model" and self._strategy.anchor == "local"

    def _states(
        self, piece: Piece, trained: Tree, memories: Sequence[Any], whole: Tree
    ) -> list[State]:
        """Return what each client of a piece must keep."""
        weights: list[Tree] = [{} for _ in piece.places]
        if self._keeps_weights:
            weights = [
                {
                    name: trained[own][place] if own in trained else whole[name]
                    for name, own in self._names.items()
                }
                for place in piece.places.tolist()
            ]
        found = []
        for at, past in enumerate(piece.pasts):
            memory = past.memory
            if memories:
                memory = memory._replace(**memories[at])
            index = int(piece.turns.experiences[at])
            after = past._replace(memory=memory, experience=index, weights=weights[at])
            found.append(keep(after, self._strategy.method))
        return found

    # What the formulations differ in

    def _prototype(self) -> Step[Any]:
        return Step(
            method=self._strategy.method,
            network=self._stateless,
            optimizer=self._strategy.optimizer,
            criterion=self._criterion,
            differentiate=by_transform,
            max_grad_norm=self._training.max_grad_norm,
            measures_gradient=self._training.gradient_metrics,
        )

    def _make_gradients(self, step: Step[Any]) -> Gradients:
        if self.formulation != "vmap":
            chain = Chain.of(self._model)
            assert isinstance(chain, Chain)
            handed = Handed(self._model, self._training)
            return ByChain(chain, self._strategy.method, handed, self._criterion)
        surveyed = Stateless(self._model, self._training, evaluating=True)
        return ByTransform(step, surveyed, {})

    @torch.no_grad()
    def _load(self, received: Mapping[str, Tensor]) -> None:
        """Take what is not trained from what was received."""
        for name, each in self._fixed:
            if name in received:
                each.copy_(received[name])
        if isinstance(self._gradients, ByTransform):
            self._stateless.load(received)
            self._gradients.surveyed.load(received)


def _first(homes: dict[str, Tensor], like: Mapping[str, Tensor], n: int) -> Tree:
    """Return room for n clients' parameters, (n, *shape), out of `homes`, which grow if need be."""
    for name, each in like.items():
        if name not in homes or len(homes[name]) < n:
            homes[name] = torch.empty(n, *each.shape, dtype=each.dtype, device=each.device)
    return {name: homes[name][:n] for name in like}


def _on(criterion: Loss, device: torch.device) -> Loss:
    """Return `criterion` with its table on `device`."""
    if criterion.companions is None:
        return criterion
    return replace(criterion, companions=criterion.companions.to(device))
