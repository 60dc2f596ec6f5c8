"""Optimisers as pure functions of weights, gradients and what they remember.

Each follows the arithmetic of the ``torch.optim`` class it is named after, operation by operation
(its single-tensor form), and returns new tensors. The number of steps taken is a Python number in
the loop over one client, and a float64 scalar for each client under ``vmap``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from strategies.continual.functional.trees import Tree

Number = float | Tensor
"""A Python number, or a scalar for each client."""


class Slots(NamedTuple):
    """What an optimiser remembers of a turn.

    Attributes:
        steps: Taken so far.
        trees: Its running means and sums, by their name in ``torch.optim``.
    """

    steps: Number
    trees: dict[str, Tree]


@dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Attributes:
        lr: Learning rate, at least 0.
        weight_decay: At least 0.
        maximize: Whether to climb.
    """

    lr: float
    weight_decay: float = 0.0
    maximize: bool = False

    def scaled(self, factor: float) -> Self:
        """Return the same with its learning rate multiplied by `factor`."""
        return replace(self, lr=self.lr * factor)

    def initial(self, params: Tree, steps: Number = 0) -> Slots:
        """Return what it remembers before the first step on `params`."""
        return Slots(
            steps,
            {
                slot: {name: self._blank(slot, tensor) for name, tensor in params.items()}
                for slot in self._slots()
            },
        )

    def update(self, params: Tree, gradient: Tree, slots: Slots) -> tuple[Tree, Slots]:
        """Return weights and memory after one step along `gradient`.

        A parameter that is not in `gradient` stays as it is, as one of torch without ``.grad``.
        """
        steps = slots.steps + 1
        after = dict(params)
        trees = {slot: dict(tree) for slot, tree in slots.trees.items()}
        for name, g in gradient.items():
            theta = params[name]
            kept = {slot: tree[name] for slot, tree in trees.items()}
            after[name] = self._step(theta, -g if self.maximize else g, kept, steps)
            for slot, tensor in kept.items():
                trees[slot][name] = tensor
        return after, Slots(steps, trees)

    def _slots(self) -> tuple[str, ...]:
        return ()

    def _blank(self, slot: str, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor)

    def _step(self, theta: Tensor, g: Tensor, kept: Tree, steps: Number) -> Tensor:
        """Return new weights of one parameter; replace what is remembered of it in `kept`."""
        raise NotImplementedError

    def _decayed(self, theta: Tensor, g: Tensor) -> Tensor:
        """Return `g` with the gradient of the L2 penalty."""
        return torch.add(g, theta, alpha=self.weight_decay) if self.weight_decay else g


@dataclass(frozen=True)
class SGD(Optimizer):
    """``torch.optim.SGD``."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    def _slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def _step(self, theta: Tensor, g: Tensor, kept: Tree, steps: Number) -> Tensor:
        g = self._decayed(theta, g)
        if self.momentum:
            fresh = g
            if self.dampening:  # not at the first step
                late = steps > 1
                late = late.to(g.dtype) if isinstance(late, Tensor) else late
                fresh = g * (1 - self.dampening * late)
            velocity = kept["momentum_buffer"] * self.momentum + fresh
            kept["momentum_buffer"] = velocity
            g = torch.add(g, velocity, alpha=self.momentum) if self.nesterov else velocity
        return torch.add(theta, g, alpha=-self.lr)


@dataclass(frozen=True)
class Adam(Optimizer):
    """``torch.optim.Adam``, and with `decoupled_weight_decay` ``torch.optim.AdamW``."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    decoupled_weight_decay: bool = False

    def _slots(self) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ()))

    def _step(self, theta: Tensor, g: Tensor, kept: Tree, steps: Number) -> Tensor:
        beta1, beta2 = self.betas
        if self.decoupled_weight_decay:
            theta = theta * (1 - self.lr * self.weight_decay) if self.weight_decay else theta
        else:
            g = self._decayed(theta, g)
        mean = kept["exp_avg"].lerp(g, 1 - beta1)
        square = torch.addcmul(kept["exp_avg_sq"] * beta2, g, g, value=1 - beta2)
        kept["exp_avg"], kept["exp_avg_sq"] = mean, square
        if self.amsgrad:
            square = kept["max_exp_avg_sq"] = torch.maximum(kept["max_exp_avg_sq"], square)
        root = (1 - beta2**steps) ** 0.5
        return _moved(theta, mean, square.sqrt() / root + self.eps, self.lr / (1 - beta1**steps))


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """``torch.optim.RMSprop``."""

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False

    def _slots(self) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if self.momentum else ()
        return ("square_avg", *momentum, *(("grad_avg",) if self.centered else ()))

    def _step(self, theta: Tensor, g: Tensor, kept: Tree, steps: Number) -> Tensor:
        g = self._decayed(theta, g)
        square = torch.addcmul(kept["square_avg"] * self.alpha, g, g, value=1 - self.alpha)
        kept["square_avg"] = square
        if self.centered:
            mean = kept["grad_avg"] = kept["grad_avg"].lerp(g, 1 - self.alpha)
            square = torch.addcmul(square, mean, mean, value=-1)
        size = square.sqrt() + self.eps
        if not self.momentum:
            return torch.addcdiv(theta, g, size, value=-self.lr)
        velocity = torch.addcdiv(kept["momentum_buffer"] * self.momentum, g, size)
        kept["momentum_buffer"] = velocity
        return torch.add(theta, velocity, alpha=-self.lr)


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """``torch.optim.Adagrad``."""

    lr_decay: float = 0.0
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0

    def _slots(self) -> tuple[str, ...]:
        return ("sum",)

    def _blank(self, slot: str, tensor: Tensor) -> Tensor:
        return torch.full_like(tensor, self.initial_accumulator_value)

    def _step(self, theta: Tensor, g: Tensor, kept: Tree, steps: Number) -> Tensor:
        g = self._decayed(theta, g)
        total = kept["sum"] = torch.addcmul(kept["sum"], g, g)
        rate = self.lr / (1 + (steps - 1) * self.lr_decay)
        return _moved(theta, g, total.sqrt() + self.eps, rate)


def _moved(theta: Tensor, direction: Tensor, size: Tensor, rate: Number) -> Tensor:
    """Return ``theta - rate * direction / size``."""
    if isinstance(rate, Tensor):
        return theta - rate * direction / size
    return torch.addcdiv(theta, direction, size, value=-rate)


_TWINS: dict[type[torch.optim.Optimizer], type[Optimizer]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: Adam,
    torch.optim.RMSprop: RMSprop,
    torch.optim.Adagrad: Adagrad,
}
_WITHOUT_MEANING = ("foreach", "fused", "capturable", "differentiable")
"""Options of how torch computes, not of what."""


def optimizer_of(
    build: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
) -> Optimizer:
    """Return the twin of the optimiser that `build` makes.

    Raises:
        ValueError: There is none.
    """
    built = build([nn.Parameter(torch.zeros(1))])
    name, twin = type(built).__name__, _TWINS.get(type(built))
    if twin is None:
        known = sorted(each.__name__ for each in _TWINS)
        raise ValueError(
            f"optimizer={name}: engine=functional has no {name}; it has {', '.join(known)}"
        )
    settings: dict[str, Any] = {}
    for key, value in built.defaults.items():
        if key in twin.__dataclass_fields__:
            settings[key] = float(value) if isinstance(value, Tensor) else value
        elif key not in _WITHOUT_MEANING:
            raise ValueError(
                f"optimizer.{key}={value}: engine=functional has no {key} for {name}; "
                "use engine=avalanche"
            )
    if isinstance(built, torch.optim.AdamW):  # before torch 2.7 its defaults do not say so
        settings["decoupled_weight_decay"] = True
    return twin(**settings)
