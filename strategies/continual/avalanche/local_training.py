"""What any client's local training may add to a continual strategy, as Avalanche plugins."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from fedlearn.types import DivergedError


class ProximalTerm(SupervisedPlugin):  # type: ignore[misc]
    """FedProx's mu/2 * ||w - w_received||^2, added to the loss.

    T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2.
    """

    def __init__(self, mu: float, model: nn.Module) -> None:
        """Anchor the term at the present weights of `model`.

        Args:
            mu: Greater than 0.
            model: Holds the received global weights.
        """
        super().__init__()
        self._mu = mu
        self._pairs = [
            (parameter, parameter.detach().clone())
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the term."""
        distance = torch.stack([(now - then).pow(2).sum() for now, then in self._pairs]).sum()
        strategy.loss += self._mu / 2 * distance


class GradientNorm(SupervisedPlugin):  # type: ignore[misc]
    """Watches the gradient's L2 norm over all parameters, and clips it, just before the step.

    With `reports`, the turn's metrics get ``grad-norm`` and ``grad-norm-max``: the mean and the
    largest norm over its steps, before clipping. Clipping needs the same norm, so the two together
    cost no more than one.
    """

    def __init__(self, model: nn.Module, max_norm: float | None, reports: bool) -> None:
        """Create the plugin.

        Args:
            model: Whose parameters are trained.
            max_norm: Gradients are clipped to it; greater than 0, None for never.
            reports: Whether to report the norms.
        """
        super().__init__()
        self._parameters = [each for each in model.parameters() if each.requires_grad]
        self._max_norm = max_norm
        self._reports = reports
        self._norms: list[Tensor] = []

    def before_update(self, strategy: Any, **_: Any) -> None:
        """Clip, and take note."""
        if self._max_norm is not None:
            norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        else:
            gradients = [each.grad for each in self._parameters if each.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        if self._reports:
            self._norms.append(norm)

    def after_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Report the norms so far.

        Raises:
            DivergedError: One is not a number.
        """
        if not self._reports:
            return
        norms = torch.stack(self._norms)
        mean, largest = torch.stack([norms.mean(), norms.max()]).tolist()
        if not math.isfinite(mean):
            raise DivergedError(f"the gradient's norm is {largest}")
        strategy.metrics |= {"grad-norm": mean, "grad-norm-max": largest}


@contextmanager
def in_bfloat16(model: nn.Module) -> Iterator[None]:
    """Let `model` run its forward passes in bfloat16 where torch finds it safe (autocast).

    Weights, gradients and what follows the logits stay float32. Hooks do it, so that it holds for
    whoever calls the model (a memory's batch, a penalty, a Fisher), and for copies of it.
    """
    device = next(model.parameters()).device.type
    running: list[torch.autocast] = []

    def enter(_module: nn.Module, _inputs: Any) -> None:
        running.append(torch.autocast(device, torch.bfloat16))
        running[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        running.pop().__exit__(None, None, None)
        return output.float() if isinstance(output, Tensor) else output

    hooks = [
        model.register_forward_pre_hook(enter),
        model.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
