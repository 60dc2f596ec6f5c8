"""Avalanche's continual strategies in federated rounds.

A client takes part in some rounds of some experiences, and is rebuilt from its `State` each time.
Avalanche expects one object that lives through whole experiences. `AvalancheContinual` closes the
gap: what belongs to an *experience* runs once an experience, what belongs to an *epoch* runs every
epoch, and all that a strategy remembers travels in the state.

At a client's first turn of an experience:

1. The experience that it trained on before, if any, is consolidated: Avalanche's
   ``after_training_exp`` hooks (Fisher, importances, teacher, buffers) run on that experience's
   data. They see the weights that the client itself ended with (``anchor="local"``, Avalanche's
   meaning), or the global weights received now (``anchor="global"``).
2. The ``before_training_exp`` hooks of the new one run, still at those weights: SI anchors there.
3. The received global weights are put back.

Every turn then trains its epochs with Avalanche's own loop. For a single client, R rounds of one
epoch are exactly one ``train()`` of R epochs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fedlearn.heads import head_table
from fedlearn.losses import make_loss
from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, LocalTraining, Report, State, Turn
from strategies.continual.bounds import one_of

Anchor = Literal["local", "global"]
"""Whose weights an experience is consolidated at: the client's own last ones, or the received."""

Criterion = Callable[[Tensor, Tensor], Tensor]

_WEIGHTS, _EXPERIENCE, _CLOCK = "weights/", "experience", "clock"
_COUNTERS = (
    "train_iterations",
    "train_exp_counter",
    "train_exp_epochs",
    "train_exp_iterations",
    "train_epoch_iterations",
    "total_iterations",
)


def supervised(criterion: Criterion) -> Any:
    """Return the prototype of a strategy that is Avalanche's supervised template plus plugins."""
    from strategies.continual.avalanche.template import TensorTemplate

    return TensorTemplate.prototype(criterion)


@dataclass(frozen=True)
class AvalancheContinual:
    """A `fedlearn.types.ContinualStrategy` that runs an Avalanche strategy.

    Stateless and shared by all clients; Avalanche is imported at the first turn.

    Attributes:
        training: What local training is made of.
        plugins: Makes the continual plugins of one turn. None for plain fine-tuning.
        template: Makes the prototype of the Avalanche strategy for a criterion; see
            `strategies.continual.avalanche.template.TurnByTurn`.
        keeps: Dotted paths from the Avalanche strategy to the attributes that must outlive a turn,
            e.g. ``plugins.0.importances``.
        consolidates: What the hooks at an experience's end and start read: ``"nothing"`` (they are
            not run), the experience's ``"data"``, or the ``"model"`` too.
        anchor: Where ``consolidates="model"`` reads the model. ``"local"`` keeps the client's
            weights in its state.
        equipment: Makes the model that server and clients use from the one that the user chose.
    """

    training: LocalTraining
    plugins: Callable[[], Sequence[Any]] = tuple
    template: Callable[[Criterion], Any] = supervised
    keeps: tuple[str, ...] = ()
    consolidates: Literal["nothing", "data", "model"] = "nothing"
    anchor: Anchor = "local"
    equipment: Callable[[nn.Module, LocalTraining], nn.Module] | None = None

    def __post_init__(self) -> None:
        one_of("anchor", self.anchor, get_args(Anchor))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the prototype: another process makes its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_prototype"}

    @cached_property
    def _prototype(self) -> Any:
        """The Avalanche strategy that every turn's is made from."""
        prototype = self.template(make_loss(self.training, None))
        prototype.augment, prototype.max_loss = self.training.augment, self.training.max_loss
        return prototype

    def equip(self, model: nn.Module) -> nn.Module:
        """Return the model that takes the place of `model`; see `ContinualStrategy`."""
        return model if self.equipment is None else self.equipment(model, self.training)

    def train_turn(
        self,
        model: nn.Module,
        experience: Experience,
        stream: Callable[[int], Experience],
        turn: Turn,
        state: State,
    ) -> Report:
        """Train `model` in place for one turn; see `fedlearn.types.ContinualStrategy`."""
        with borrowed_global_rng(turn.seed("turn", turn.server_round)), self._precision(model):
            model.train()
            strategy = self._strategy(model, stream, turn)
            self._recall(strategy, state)
            if self.consolidates != "nothing":
                self._enter(strategy, model, experience, turn, state)
            strategy.plugins[-1:-1] = self._local_plugins(model, turn)
            self._face(strategy, experience)
            strategy._train_exp(strategy.experience, eval_streams=[])
        return Report(
            state=self._state(strategy, model, experience),
            loss=strategy.mean_loss,
            steps=strategy.steps,
            replayed=strategy.replayed,
            metrics=strategy.metrics,
        )

    def _precision(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return the scope in which `model` runs in the precision asked for."""
        if self.training.precision == "float32":
            return nullcontext()
        from strategies.continual.avalanche.local_training import in_bfloat16

        return in_bfloat16(model)

    def _strategy(self, model: nn.Module, stream: Callable[[int], Experience], turn: Turn) -> Any:
        """Return the Avalanche strategy of this turn, which remembers nothing yet."""
        prototype = self._prototype
        optimizer = self._optimizer(model, turn)
        if self.training.heads is not None:
            from strategies.continual.avalanche.heads import TaskHeads

            device = next(model.parameters()).device
            table = head_table(self.training.heads, self.training.num_classes)
            model = TaskHeads(model, table.to(device)).train()
        return prototype.for_turn(model, optimizer, self.plugins(), turn, stream)

    def _optimizer(self, model: nn.Module, turn: Turn) -> torch.optim.Optimizer:
        """Return this turn's optimiser of what is trainable, at this turn's rate."""
        optimizer = self.training.optimizer([p for p in model.parameters() if p.requires_grad])
        if turn.lr_factor != 1:
            for group in optimizer.param_groups:
                group["lr"] *= turn.lr_factor
        return optimizer

    def _local_plugins(self, model: nn.Module, turn: Turn) -> list[Any]:
        """Return what local training adds; `model` must hold the received weights."""
        mu = float(turn.config.get("proximal-mu", 0.0))  # type: ignore[arg-type]
        clip, reports = self.training.max_grad_norm, self.training.gradient_metrics
        if not mu and clip is None and not reports:
            return []
        from strategies.continual.avalanche.local_training import GradientNorm, ProximalTerm

        terms: list[Any] = [ProximalTerm(mu, model)] if mu else []
        watches = clip is not None or reports
        return [*terms, GradientNorm(model, clip, reports)] if watches else terms

    def _face(self, strategy: Any, experience: Experience) -> None:
        """Turn `strategy` to `experience`: its samples, and the loss that goes with them."""
        strategy.experience = self._seen(experience, strategy.stream)
        if self.training.class_balance is not None:
            labels = experience.samples.targets(experience.rows)
            strategy._criterion = make_loss(self.training, labels)

    def _seen(self, experience: Experience, stream: Callable[[int], Experience]) -> Any:
        """Return `experience` as Avalanche sees it."""
        from strategies.continual.avalanche.dataset import ClientExperience

        return ClientExperience(experience, stream, task_aware=self.training.heads is not None)

    def _enter(
        self, strategy: Any, model: nn.Module, experience: Experience, turn: Turn, state: State
    ) -> None:
        """At the client's first turn of `experience`, consolidate the one before and set it up."""
        if turn.previous is None and state.values.get(_EXPERIENCE) == experience.index:
            return
        received = None
        if self.consolidates == "model":
            received = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            if turn.previous is not None and self.anchor == "local":
                weights = _under(_WEIGHTS, state.tensors)
                if not weights:
                    raise ValueError(f"client {turn.client_id} has lost the state it had")
                model.load_state_dict(weights)
        if turn.previous is not None:
            self._face(strategy, turn.previous)
            strategy._after_training_exp()
        self._face(strategy, experience)
        strategy._before_training_exp()
        if received is not None:
            model.load_state_dict(received)

    def _recall(self, strategy: Any, state: State) -> None:
        """Give `strategy` what the client kept."""
        counters = state.values.get(_CLOCK)
        if counters is None:
            return
        for name, count in zip(_COUNTERS, counters, strict=True):  # type: ignore[arg-type]
            setattr(strategy.clock, name, count)
        if self.keeps:
            from strategies.continual.avalanche.snapshot import restore

            restore(strategy, state)

    def _state(self, strategy: Any, model: nn.Module, experience: Experience) -> State:
        """Return what the client must keep."""
        state = State()
        if self.consolidates == "nothing":
            return state
        state.values[_EXPERIENCE] = experience.index
        state.values[_CLOCK] = [getattr(strategy.clock, name) for name in _COUNTERS]
        if self.consolidates == "model" and self.anchor == "local":
            for name, tensor in model.state_dict().items():
                state.tensors[_WEIGHTS + name] = tensor.clone()
        if self.keeps:
            from strategies.continual.avalanche.snapshot import capture

            capture(strategy, self.keeps, state)
        return state


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
