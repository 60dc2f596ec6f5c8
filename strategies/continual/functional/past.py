"""What a client brings along from its earlier turns, and how it is written into a `State`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedlearn.types import State
from strategies.continual.functional.method import Method
from strategies.continual.functional.rehearsal import Kept
from strategies.continual.functional.trees import Tree

EXPERIENCE, CONSOLIDATED = "experience", "consolidated"
_WEIGHTS, _MEMORY, _KEPT = "weights/", "memory/", "kept/"


class Past(NamedTuple):
    """What a client brings along.

    Attributes:
        experience: Index of the one that it last trained on; None for a new client.
        consolidated: Experiences consolidated so far.
        weights: Its own last parameters and buffers; empty where nobody asks for them.
        memory: The method's; None for nothing.
        kept: The samples that it remembers; None for none.
    """

    experience: int | None = None
    consolidated: int = 0
    weights: Tree = {}  # noqa: RUF012 - never changed
    memory: Any = None
    kept: Kept | None = None


def recall(state: State, method: Method[Any], device: torch.device) -> Past:
    """Return what `keep` wrote, on `device`; it may share tensors with `state`."""
    consolidated = state.values.get(CONSOLIDATED)
    if consolidated is None:
        return Past()
    memory, fields = None, _under(_MEMORY, state.tensors, device)
    if method.memory is not None and fields:
        memory = method.completed(
            method.memory(
                **{
                    name: fields[name] if name in fields else _under(f"{name}/", fields, device)
                    for name in method.memory._fields
                }
            )
        )
    kept = _under(_KEPT, state.tensors, torch.device("cpu"))
    return Past(
        int(state.values[EXPERIENCE]),  # type: ignore[arg-type]
        int(consolidated),  # type: ignore[arg-type]
        _under(_WEIGHTS, state.tensors, device),
        memory,
        Kept(**kept) if kept else None,
    )


def keep(past: Past, method: Method[Any]) -> State:
    """Return `past` as a state, which shares its tensors."""
    assert past.experience is not None
    state = State(values={EXPERIENCE: past.experience, CONSOLIDATED: past.consolidated})
    for name, tensor in past.weights.items():
        state.tensors[_WEIGHTS + name] = tensor
    if past.memory is not None:
        for field, value in past.memory._asdict().items():
            if field in method.derived:
                continue
            parts = {"": value} if isinstance(value, Tensor) else value
            for name, tensor in parts.items():
                state.tensors[f"{_MEMORY}{field}/{name}".removesuffix("/")] = tensor
    if past.kept is not None:
        for name, tensor in past.kept._asdict().items():
            if tensor.numel():
                state.tensors[_KEPT + name] = tensor
    return state


def _under(prefix: str, tensors: Tree, device: torch.device) -> Tree:
    """Return the tensors whose name starts with `prefix`, without it, on `device`."""
    return {
        name.removeprefix(prefix): tensor.to(device)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
