"""Features: what a model's last linear layer reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def head_of(model: nn.Module, continual: str) -> nn.Linear:
    """Return the last linear layer of `model`, in the order in which it names its modules.

    Args:
        model: Ends in that layer, wherever it keeps it.
        continual: The continual strategy that asks, for the error.

    Raises:
        ValueError: There is none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            f"continual={continual}: needs a model that ends in a linear layer, "
            f"and {type(model).__name__} has none"
        )
    return layers[-1]


@contextmanager
def inputs_of(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect what `head` reads, (batch, features), while the model runs."""
    seen: list[Tensor] = []

    def collect(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    handle = head.register_forward_pre_hook(collect)
    try:
        yield seen
    finally:
        handle.remove()
