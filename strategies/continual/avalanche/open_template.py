"""Any of Avalanche's templates, turn by turn.

A template that is not corrected by a class of its own is combined with `TurnByTurn` when its name
is read from a YAML, and made by its own constructor every turn: that costs 1.5 ms, and nothing can
pass from one client to the next.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor, nn

from fedlearn.seeding import reseed_global
from fedlearn.types import Turn
from strategies.continual.avalanche.adapter import Criterion
from strategies.continual.avalanche.dataset import Stream
from strategies.continual.avalanche.nodes import Node, NodeError, arguments
from strategies.continual.avalanche.template import NoEvaluation, TurnByTurn
from strategies.continual.batches import Change

Loader = Literal["tensors", "avalanche"]


class OpenTurnByTurn(TurnByTurn):
    """Mix-in for plugins that expect Avalanche's hooks around a ``train()`` of one experience."""

    def _before_training(self, **_: Any) -> None:
        """Wait for the experience to be set up: ``before_training`` is once an experience too."""

    def _after_training(self, **_: Any) -> None:
        """Leave it to the experience's consolidation."""

    def _before_training_exp(self, **kwargs: Any) -> None:
        reseed_global(self._seed("set-up", self.experience.current_experience))
        super()._before_training(**kwargs)  # type: ignore[misc]
        super()._before_training_exp(**kwargs)

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        super()._after_training(**kwargs)  # type: ignore[misc]


class AvalancheLoaders(OpenTurnByTurn):
    """Mix-in: batches come from Avalanche's own loaders, sample by sample.

    Slower than tensors, and what plugins and templates that build loaders of their own or read
    ``strategy.adapted_dataset`` need. A loader is built by the hooks at an experience's start, and
    shuffles from the seed of each epoch.
    """

    _loader: Any
    _change: Change | None
    _asleep: list[nn.Module]

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        """Make the experience's data set the one to train on."""
        super(TurnByTurn, self).train_dataset_adaptation(**kwargs)  # type: ignore[misc]

    def make_train_dataloader(self, **kwargs: Any) -> None:
        """Build the template's loader; samples may be on a GPU already, so nothing is pinned."""
        super(TurnByTurn, self).make_train_dataloader(  # type: ignore[misc]
            **{"pin_memory": False, **kwargs}
        )

    def forward(self) -> Tensor:
        """Return the template's own output."""
        output: Tensor = super(TurnByTurn, self).forward()  # type: ignore[misc]
        return output

    def _unpack_minibatch(self) -> None:
        super(TurnByTurn, self)._unpack_minibatch()  # type: ignore[misc]
        self._sizes.append(len(self.mbatch[0]))
        if self._change is not None:
            self.mbatch[0] = self._change(self.mbatch[0])

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        self._loader = self.dataloader

    def _before_training_epoch(self, **kwargs: Any) -> None:
        # as TurnByTurn's, but for where the batches come from
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        reseed_global(self._seed("epoch", epoch))
        self._change = self._augmentation(epoch)
        self.dataloader, self._sizes, self._losses = self._loader, [], []
        self._memories, self._drawn = [], self.replayed
        super(TurnByTurn, self)._before_training_epoch(**kwargs)  # type: ignore[misc]

    def _before_forward(self, **kwargs: Any) -> None:
        alone = len(self.mbatch[0]) == 1  # no variance: use what is known of others
        self._asleep = [norm for norm in self._norms if norm.training] if alone else []
        for norm in self._asleep:
            norm.eval()
        super()._before_forward(**kwargs)  # type: ignore[misc]

    def _after_forward(self, **kwargs: Any) -> None:
        super()._after_forward(**kwargs)  # type: ignore[misc]
        for norm in self._asleep:
            norm.train()

    def _after_training_epoch(self, **kwargs: Any) -> None:
        self.drew(max(0, sum(self._sizes) - len(self.experience.origin)))
        super()._after_training_epoch(**kwargs)


class Recipe:
    """Stands in for a prototype: makes the strategy of a turn by its own constructor.

    Attributes that are set on it are set on what it makes.
    """

    def __init__(self, kind: type[Any], criterion: Criterion, node: Node) -> None:
        """Keep what to make.

        Args:
            kind: From `turn_by_turn`.
            criterion: Of the run.
            node: The template's settings.
        """
        self._making = kind, criterion, node

    def for_turn(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plugins: Sequence[SupervisedPlugin],
        turn: Turn,
        stream: Stream,
    ) -> Any:
        """Return a strategy that remembers nothing, on `model`, seeded by `turn`.

        Its plugins are `plugins`, then those that the template brings.

        Raises:
            NodeError: The template trains another model than `model`.
        """
        kind, criterion, node = self._making
        made = kind(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=turn.batch_size,
            train_epochs=turn.epochs,
            device=next(model.parameters()).device,
            evaluator=NoEvaluation,
            **arguments(node, "continual.template"),
        )
        if made.model is not model:
            raise NodeError(
                f"continual.template: {kind.__bases__[-1].__name__} trains a model that it makes "
                "itself, which the server would not know"
            )
        for name, value in vars(self).items():
            if name != "_making":
                setattr(made, name, value)
        no_part = (NoEvaluation, PeriodicEval, Clock)
        own = [plugin for plugin in made.plugins if not isinstance(plugin, no_part)]
        return made.for_turn(model, optimizer, [*plugins, *own], turn, stream)


def turn_by_turn(template: type[Any], loader: Loader) -> type[Any]:
    """Return Avalanche's `template` as one that lives for a turn at a time.

    Raises:
        NodeError: It builds its own loaders, and `loader` is another.
    """
    mix_in = AvalancheLoaders if loader == "avalanche" else OpenTurnByTurn
    for name in ("train_dataset_adaptation", "make_train_dataloader"):
        overrides = getattr(template, name) is not getattr(SupervisedTemplate, name)
        if overrides and loader == "tensors":
            raise NodeError(
                f"continual.loader=tensors: {template.__name__} has a {name} of its own; "
                "use continual.loader=avalanche"
            )
    own = {}
    if template.forward is not SupervisedTemplate.forward:
        own["forward"] = template.forward
    return type(f"{template.__name__}TurnByTurn", (mix_in, template), own)


def attributes_of_any(kind: type[Any]) -> set[str]:
    """Return the attributes that a strategy of `kind` has whatever its template is."""
    prototype = turn_by_turn(SupervisedTemplate, "tensors").prototype(nn.CrossEntropyLoss())
    annotated = [vars(each).get("__annotations__", {}) for each in kind.__mro__]
    mixed_in = [
        names
        for each, names in zip(kind.__mro__, annotated, strict=True)
        if issubclass(each, TurnByTurn)
    ]
    return {*vars(prototype), *(name for names in mixed_in for name in names)}
