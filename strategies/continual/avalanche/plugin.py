"""Any of Avalanche's plugins or templates, named in a YAML, without a line of Python.

.. code-block:: yaml

    # My strategy: what it does in a few words
    _target_: strategies.continual.avalanche.plugin.plugin
    _recursive_: false  # the nodes below are made anew for every turn, and not by Hydra
    plugins:
      - _target_: avalanche.training.plugins.EWCPlugin
        ewc_lambda: 10.0
    keeps: [plugins.0.importances, plugins.0.saved_params]  # what must outlive a turn
    consolidates: model  # what the hooks at an experience's end read: nothing, data or model

``template`` names one of Avalanche's strategies instead of, or beside, plugins; those that it
brings follow the ones listed. Objects inside a node (a storage policy, say) are nodes themselves.

A client is made anew for every turn: an attribute that changes must stand in ``keeps``, or in
``derived`` where it is made anew from what is kept, or used within a turn only. After the first
turn, and again after the first consolidation, everything is compared with a fresh object, and what
is in neither list is an error. What can be kept: numbers, text, tensors, importances, modules,
data sets and reservoirs, and lists, tuples, sets and dictionaries of them.

``loader: avalanche`` is for what builds loaders of its own or reads ``strategy.adapted_dataset``
(stock replay, say). The hooks at an experience's start then run at the start of every turn, for the
loaders that they build, and what is in ``keeps`` and the weights are put back after them. It is
several times slower than ``loader: tensors``. Samples beyond the experience's own count as
replayed.

R rounds of one epoch are exactly one round of R epochs for whatever starts its draws with each
epoch. An iterator over memory that lives longer (stock A-GEM, RAR) starts anew with each turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, LocalTraining, State, Turn
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual, Criterion
from strategies.continual.avalanche.nodes import (
    Node,
    NodeError,
    check_names,
    is_node,
    locate,
    make,
    nearest,
)
from strategies.continual.bounds import one_of

Consolidates = Literal["nothing", "data", "model"]
Loader = Literal["tensors", "avalanche"]

_SUPPLIED = (
    "model",
    "optimizer",
    "criterion",
    "train_mb_size",
    "train_epochs",
    "eval_mb_size",
    "device",
    "plugins",
    "evaluator",
    "eval_every",
    "peval_mode",
)


def plugin(
    *,
    training: LocalTraining,
    plugins: Sequence[Mapping[str, Any]] = (),
    template: Mapping[str, Any] | None = None,
    keeps: Sequence[str] = (),
    derived: Sequence[str] = (),
    consolidates: Consolidates = "model",
    anchor: Anchor = "local",
    loader: Loader = "tensors",
) -> AvalancheContinual:
    """Return what Avalanche's `plugins` and `template` do. A client keeps what `keeps` names.

    Args:
        training: What local training is made of.
        plugins: Nodes of Avalanche plugins, in the order in which their hooks run.
        template: Node of one of Avalanche's strategies; None for its supervised template.
        keeps: Dotted paths to the attributes that must outlive a turn, e.g.
            ``plugins.0.importances``; those of the template itself begin with their name.
        derived: Paths to attributes that change and need not be kept.
        consolidates: What the hooks at an experience's end and start read: ``"nothing"`` (they do
            not run, and nothing is kept), the experience's ``"data"``, or the ``"model"`` too. With
            ``"data"`` those hooks run at the received weights, and may change them.
        anchor: Whose weights ``consolidates="model"`` reads; ``"local"`` keeps the client's.
        loader: Where batches come from.

    Raises:
        ValueError: A node cannot be made, or a path leads nowhere or to what cannot be kept.
    """
    one_of("consolidates", consolidates, get_args(Consolidates))
    one_of("loader", loader, get_args(Loader))
    if not plugins and template is None:
        raise ValueError("continual.plugins=[]: needs a plugin, or a continual.template")
    if consolidates == "nothing" and (keeps or loader == "avalanche"):
        what = f"keeps={list(keeps)}" if keeps else f"loader={loader}"
        raise ValueError(f"continual.{what}: needs continual.consolidates=data or model")
    for place, node in enumerate(plugins):
        _check_node(node, f"continual.plugins.{place}")
    if template is not None:
        _check_node(template, "continual.template", _SUPPLIED)
    made = OpenAvalanche(
        training,
        plugins=partial(_plugins, plugins),
        template=partial(_template, node=template, loader=loader),
        keeps=tuple(keeps),
        consolidates=consolidates,
        anchor=anchor,
        derived=tuple(derived),
        reenters=loader == "avalanche",
    )
    made.check_paths(template is not None)
    return made


@dataclass(frozen=True)
class OpenAvalanche(AvalancheContinual):
    """An Avalanche strategy that nobody has looked at before.

    Attributes:
        derived: Paths to attributes that change and need not be kept.
        reenters: Whether the hooks at an experience's start run every turn.
    """

    derived: tuple[str, ...] = ()
    reenters: bool = False
    _compared: set[bool] = field(default_factory=set, init=False, repr=False, compare=False)

    def check_paths(self, is_lenient: bool) -> None:
        """Check on a stand-in that every path leads to something, and to what can be kept.

        Args:
            is_lenient: Whether a strategy that a stand-in's model does not suit is left to the
                client's first turn.

        Raises:
            ValueError: One does not.
        """
        from strategies.continual.avalanche.snapshot import capture

        model = nn.Sequential(nn.Linear(1, self.training.num_classes))
        turn = Turn(0, 0, 1, 0, 1, 1)
        with borrowed_global_rng(0):
            try:
                strategy = self._strategy(model, _no_stream, turn)
            except NodeError:
                raise
            except Exception:
                if not is_lenient:
                    raise
                return
        for path in self.keeps:
            _check_path(strategy, path, f"continual.keeps={path}")
        for path in self.derived:  # may not be there before it is used
            _check_path(strategy, path.rpartition(".")[0], f"continual.derived={path}")
        try:
            capture(strategy, self.keeps, State())
        except TypeError as error:
            raise ValueError(f"continual.keeps={error}") from error

    def _enter(
        self, strategy: Any, model: nn.Module, experience: Experience, turn: Turn, state: State
    ) -> None:
        super()._enter(strategy, model, experience, turn, state)
        if strategy.experience is None and self.reenters:
            received = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            self._face(strategy, experience)
            strategy._before_training_exp()
            model.load_state_dict(received)
            self._recall(strategy, state)

    def _state(self, strategy: Any, model: nn.Module, experience: Experience) -> State:
        has_consolidated = strategy.clock.train_exp_counter > 0
        if has_consolidated not in self._compared:
            self._compare(strategy)
            self._compared.add(has_consolidated)
        return super()._state(strategy, model, experience)

    def _compare(self, strategy: Any) -> None:
        """Look for what `strategy` remembers and would lose; once or twice in a process.

        Raises:
            ValueError: It would lose something.
        """
        from strategies.continual.avalanche.open_template import attributes_of_any
        from strategies.continual.avalanche.undeclared import undeclared

        with borrowed_global_rng(0):
            fresh = self._prototype.for_turn(
                strategy.model, strategy.optimizer, self.plugins(), strategy.turn, strategy.stream
            )
        lost = undeclared(
            strategy, fresh, {*self.keeps, *self.derived}, attributes_of_any(type(strategy))
        )
        if lost:
            raise ValueError(
                f"continual.keeps={list(self.keeps)}: {', '.join(lost)} change in a turn and would "
                "be lost; add them, or to continual.derived what is made anew from them"
            )


def _no_stream(index: int) -> Experience:
    raise LookupError(f"there is no experience {index}")


def _plugins(nodes: Sequence[Node]) -> list[Any]:
    from avalanche.core import BasePlugin

    made = [make(node, f"continual.plugins.{place}") for place, node in enumerate(nodes)]
    for place, each in enumerate(made):
        if not isinstance(each, BasePlugin):
            kind = type(each).__name__
            raise NodeError(f"continual.plugins.{place}: {kind} is no plugin of Avalanche's")
    return made


def _template(criterion: Criterion, *, node: Node | None, loader: Loader) -> Any:
    from avalanche.training.templates import SupervisedTemplate
    from avalanche.training.templates.problem_type import SupervisedProblem

    from strategies.continual.avalanche.open_template import Recipe, turn_by_turn

    if node is None:
        return turn_by_turn(SupervisedTemplate, loader).prototype(criterion)
    template: Any = locate(node, "continual.template")
    if not (isinstance(template, type) and issubclass(template, SupervisedProblem)):
        raise NodeError(
            f"continual.template._target_={node['_target_']}: is no supervised template of "
            "Avalanche's"
        )
    return Recipe(turn_by_turn(template, loader), criterion, node)


def _check_node(node: Any, key: str, supplied: Sequence[str] = ()) -> None:
    if not is_node(node):
        if isinstance(node, Mapping):
            raise ValueError(f"{key}={dict(node)}: needs a _target_, the object to make")
        raise ValueError(
            f"{key}: a {type(node).__name__} that is made already would pass from client to "
            "client; write `_recursive_: false` beside continual._target_"
        )
    check_names(node, key, supplied)


def _check_path(strategy: Any, path: str, key: str) -> None:
    """Check that `path` leads from `strategy` to something."""
    value = strategy
    for part in path.split(".") if path else ():
        if isinstance(value, Mapping):
            inside: dict[str, Any] = {str(name): item for name, item in value.items()}
        elif isinstance(value, list | tuple):
            inside = {str(place): item for place, item in enumerate(value)}
        else:
            inside = dict.fromkeys(dir(value))
        if part not in inside:
            hint = nearest(part, list(inside))
            raise ValueError(f"{key}: {type(value).__name__} has no {part}{hint}")
        found = inside[part]
        value = getattr(value, part) if found is None and hasattr(value, part) else found
