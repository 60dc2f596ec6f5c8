"""What an Avalanche strategy remembers and nobody declared: it would be lost between two turns."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.utils import ParamData
from torch import Tensor, nn

from strategies.continual.avalanche.dataset import identity

_MISSING = object()


def undeclared(
    live: Any, fresh: Any, declared: Collection[str], skipped: Collection[str]
) -> list[str]:
    """Return the paths at which strategy `live` holds something else than `fresh` does.

    Args:
        live: A strategy after a turn, whose plugins begin as those of `fresh` do.
        fresh: One that has seen nothing.
        declared: Paths that are known, with all that stands below them.
        skipped: Attributes of the strategy itself that are no matter of its kind.
    """
    found: list[str] = []
    own = [name for name in vars(live) if name not in skipped]
    for name in own:
        _compare(name, getattr(live, name), getattr(fresh, name, _MISSING), declared, found)
    plugins = fresh.plugins[:-1]  # without the clock; what local training adds follows in `live`
    for place, (plugin, other) in enumerate(zip(live.plugins, plugins, strict=False)):
        for name, value in vars(plugin).items():
            path = f"plugins.{place}.{name}"
            _compare(path, value, getattr(other, name, _MISSING), declared, found)
    return found


def _compare(path: str, live: Any, fresh: Any, declared: Collection[str], found: list[str]) -> None:
    """Add to `found` where `live` differs from `fresh`, at `path` or at what is declared below."""
    if path in declared:
        return
    if any(each.startswith(f"{path}.") for each in declared):
        for name, child in _children(live):
            _compare(f"{path}.{name}", child, _child(fresh, name), declared, found)
    elif not _same(live, fresh, ()):
        found.append(path)


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def _child(value: Any, name: Any) -> Any:
    return dict(_children(value)).get(name, _MISSING)


def _same(one: Any, other: Any, above: tuple[int, ...]) -> bool:
    """Whether two values are equal, as far as anybody can see."""
    if one is other or id(one) in above:
        return True
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return _equal(one, other)
    if isinstance(one, ParamData) and isinstance(other, ParamData):
        return _equal(one.data, other.data)
    if isinstance(one, nn.Module) and isinstance(other, nn.Module):
        return _same(one.state_dict(), other.state_dict(), above)
    if isinstance(one, AvalancheDataset) and isinstance(other, AvalancheDataset):
        return len(one) == len(other) and bool(torch.equal(identity(one), identity(other)))
    if type(one) is not type(other):
        return callable(one) and callable(other)
    if isinstance(one, bool | int | float | str | bytes | set | frozenset):
        return bool(one == other)
    names = [name for name, _ in _children(one)]
    return names == [name for name, _ in _children(other)] and all(
        _same(child, _child(other, name), (*above, id(one))) for name, child in _children(one)
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether both are tensors, and equal ones."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
