"""What a client brings along from its earlier turns, and how it is written into a `State`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedlearn.types import State
from strategies.continual.functional.method import Method
from strategies.continual.functional.rehearsal import Kept
from strategies.continual.functional.trees import Tree

EXPERIENCE, CONSOLIDATED = "experience", "consolidated"
_WEIGHTS, _MEMORY, _KEPT = "weights", "memory", "kept"


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
    parts = _by_head(state.tensors)
    memory, fields = None, parts.get(_MEMORY)
    if method.memory is not None and fields:
        here = _by_head({name: each.to(device) for name, each in fields.items()})
        memory = method.completed(
            method.memory(**{name: _field(here.get(name, {})) for name in method.memory._fields})
        )
    kept = {name: each.cpu() for name, each in parts.get(_KEPT, {}).items()}
    weights = {name: each.to(device) for name, each in parts.get(_WEIGHTS, {}).items()}
    return Past(
        int(state.values[EXPERIENCE]),  # type: ignore[arg-type]
        int(consolidated),  # type: ignore[arg-type]
        weights,
        memory,
        Kept(**kept) if kept else None,
    )


def keep(past: Past, method: Method[Any]) -> State:
    """Return `past` as a state, which shares its tensors."""
    assert past.experience is not None
    state = State(values={EXPERIENCE: past.experience, CONSOLIDATED: past.consolidated})
    for name, tensor in past.weights.items():
        state.tensors[f"{_WEIGHTS}/{name}"] = tensor
    if past.memory is not None:
        for field, value in past.memory._asdict().items():
            if field in method.derived:
                continue
            parts = {"": value} if isinstance(value, Tensor) else value
            for name, tensor in parts.items():
                state.tensors[f"{_MEMORY}/{field}/{name}".removesuffix("/")] = tensor
    if past.kept is not None:
        for name, tensor in past.kept._asdict().items():
            if tensor.numel():
                state.tensors[f"{_KEPT}/{name}"] = tensor
    return state


def _by_head(tensors: Tree) -> dict[str, Tree]:
    """Return the tensors called ``head/rest`` by head and rest, in their order."""
    parts: dict[str, Tree] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition("/")
        parts.setdefault(head, {})[rest] = tensor
    return parts


def _field(parts: Tree) -> Tensor | Tree:
    """Return a field of a memory: the one tensor without a name, or all of them."""
    return parts.get("", parts)
