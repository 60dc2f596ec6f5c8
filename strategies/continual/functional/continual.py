"""A continual strategy made of pure functions, in federated rounds.

At a client's first turn of an experience, the experience that it trained on before is consolidated,
at the weights that the client itself ended with (``anchor="local"``) or at those received now
(``anchor="global"``). Then it trains. Both as in `strategies.continual.avalanche.adapter`, with the
same draws from the same seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fedlearn.losses import Loss, make_loss
from fedlearn.seeding import borrowed_global_rng
from fedlearn.turns import CohortTrainer, Formulation
from fedlearn.types import Experience, LocalTraining, Report, State, Turn
from strategies.continual.bounds import one_of
from strategies.continual.functional.consolidation import batches_of, classes_of, learnt, logits_of
from strategies.continual.functional.epochs import Epochs, Remembered
from strategies.continual.functional.formulations import trainer_of
from strategies.continual.functional.method import Method
from strategies.continual.functional.network import Live
from strategies.continual.functional.optimizers import Optimizer, optimizer_of
from strategies.continual.functional.past import Past, keep, recall
from strategies.continual.functional.rehearsal import Arrival, Kept, Rehearsal
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.step import Step, by_leaves
from strategies.continual.functional.trees import Batch, Tree
from strategies.continual.rows import Stream, gather

Anchor = Literal["local", "global"]
"""Whose weights an experience is consolidated at: the client's own last ones, or the received."""


@dataclass(frozen=True)
class FunctionalContinual:
    """A `fedlearn.types.ContinualStrategy` of pure functions. Stateless, shared by all clients.

    Attributes:
        training: What local training is made of.
        method: The continual strategy.
        rehearsal: Which samples are remembered; None for none.
        anchor: Where an experience is consolidated. ``"local"`` keeps the client's weights in its
            state, where consolidation looks at the model.

    Raises:
        ValueError: The optimiser has no twin.
    """

    training: LocalTraining
    method: Method[Any]
    rehearsal: Rehearsal | None = None
    anchor: Anchor = "local"

    def __post_init__(self) -> None:
        one_of("anchor", self.anchor, get_args(Anchor))
        _ = self.optimizer  # a twin that is missing shows now

    @cached_property
    def optimizer(self) -> Optimizer:
        """The optimiser's twin, at its full learning rate."""
        return optimizer_of(self.training.optimizer)

    @property
    def consolidates(self) -> Literal["nothing", "data", "model"]:
        """What is looked at when an experience is consolidated."""
        if self.method.memory is not None:
            return "model"
        if self.rehearsal is None:
            return "nothing"
        return "model" if self.rehearsal.keeps_logits else "data"

    @property
    def keeps_state(self) -> bool:
        """Whether clients keep anything between turns."""
        return self.consolidates != "nothing"

    def cohort_trainer(
        self, model: nn.Module, device: torch.device, formulation: Formulation = "auto"
    ) -> CohortTrainer:
        """Return what trains many clients at once; see `fedlearn.turns.CohortStrategy`.

        Args:
            model: What they train; not modified.
            device: Where.
            formulation: How.

        Raises:
            ValueError: Clients of such a model cannot be trained like that.
        """
        return trainer_of(self, model, device, formulation)

    def criterion(self, experience: Experience) -> Loss:
        """Return the loss that goes with `experience`."""
        if self.training.class_balance is None:
            return make_loss(self.training, None)
        return make_loss(self.training, experience.samples.targets(experience.rows))

    def samples(self, experience: Experience, device: torch.device) -> list[Tensor]:
        """Return inputs, labels and, where there are heads, task labels of `experience`."""
        x, y = (tensor.to(device) for tensor in experience.gather())
        if self.training.heads is None:
            return [x, y]
        return [x, y, torch.full((len(y),), experience.task_label, device=y.device)]

    def train_turn(
        self,
        model: nn.Module,
        experience: Experience,
        stream: Callable[[int], Experience],
        turn: Turn,
        state: State,
    ) -> Report:
        """Train `model` in place for one turn; see `fedlearn.types.ContinualStrategy`."""
        device = next(model.parameters()).device
        with borrowed_global_rng(turn.seed("turn", turn.server_round)):
            live = Live(model.train(), self.training)
            past = recall(state, self.method, device)
            if self.keeps_state:
                past = self._enter(live, past, experience, turn, device)
            epochs = Epochs(
                model,
                live,
                self._step(live, experience, turn),
                turn,
                self.training,
                self._remembered(past.kept, experience, stream, turn, device),
            )
            try:
                memory = epochs.run(self.samples(experience, device), past.memory)
            finally:
                live.settle()
        return Report(
            state=self._state(past._replace(memory=memory), live, experience),
            loss=epochs.mean_loss,
            steps=epochs.steps,
            replayed=epochs.replayed,
            metrics=epochs.metrics,
        )

    def _step(self, live: Live, experience: Experience, turn: Turn) -> Step[Any]:
        """Return one optimiser step of this turn; the model must hold the received weights."""
        mu = float(turn.config.get("proximal-mu", 0.0))  # type: ignore[arg-type]
        proximal = None
        if mu:
            received = {name: leaf.detach().clone() for name, leaf in live.leaves.items()}
            proximal = Spring(mu / 2, received)
        return Step(
            method=self.method,
            network=live,
            optimizer=self.optimizer.scaled(turn.lr_factor),
            criterion=self.criterion(experience),
            differentiate=by_leaves,
            proximal=proximal,
            max_grad_norm=self.training.max_grad_norm,
            measures_gradient=self.training.gradient_metrics,
        )

    def _remembered(
        self,
        kept: Kept | None,
        experience: Experience,
        stream: Stream,
        turn: Turn,
        device: torch.device,
    ) -> Remembered | None:
        """Return what is replayed beside `experience`, if there is anything."""
        if self.rehearsal is None:
            return None
        kept = self.rehearsal.shown(kept, Arrival(experience, turn.seed))
        if kept is None:
            return None
        x, y, task = (tensor.to(device) for tensor in gather(stream, kept.rows))
        batch: Batch = {"x": x, "y": y}
        if self.training.heads is not None:
            batch["task"] = task
        if self.rehearsal.keeps_logits:
            batch["logits"] = kept.logits.to(device)
        return Remembered(self.rehearsal, batch, kept.groups)

    def _enter(
        self, live: Live, past: Past, experience: Experience, turn: Turn, device: torch.device
    ) -> Past:
        """At the client's first turn of `experience`, consolidate the one before and set it up."""
        previous = turn.previous
        if previous is None and past.experience == experience.index:
            return past
        weights: Tree = {}
        if self.consolidates == "model":
            own = previous is not None and self.anchor == "local"
            weights = past.weights if own else live.weights()
            if not weights:
                raise ValueError(f"client {turn.client_id} has lost the state it had")
        if previous is not None:
            past = self._consolidated(live, past, previous, turn, weights, device)
        if self.method.memory is not None:
            params = {name: weights[name] for name in live.trainable}
            past = past._replace(memory=self.method.enter(past.memory, params, live))
        return past

    def _consolidated(
        self,
        live: Live,
        past: Past,
        previous: Experience,
        turn: Turn,
        weights: Tree,
        device: torch.device,
    ) -> Past:
        """Return what the client brings along once `previous` is consolidated at `weights`."""
        samples = self.samples(previous, device)
        batches = batches_of(samples, turn.batch_size)
        memory, kept = past.memory, past.kept
        if self.method.memory is not None:
            classes = classes_of(samples[1], previous.task_label, self.training)
            criterion = self.criterion(previous)
            left = learnt(live, self.method, criterion, batches, weights, classes)
            memory = self.method.consolidate(memory, left)
        if self.rehearsal is not None:
            arrival = Arrival(previous, turn.seed)
            if self.rehearsal.keeps_logits:
                arrival = replace(arrival, logits=logits_of(live, batches, weights))
            kept = self.rehearsal.update(kept, arrival)
        return past._replace(memory=memory, kept=kept, consolidated=past.consolidated + 1)

    def _state(self, past: Past, live: Live, experience: Experience) -> State:
        """Return what the client must keep."""
        if not self.keeps_state:
            return State()
        own = self.consolidates == "model" and self.anchor == "local"
        weights = live.weights() if own else {}
        return keep(past._replace(experience=experience.index, weights=weights), self.method)
