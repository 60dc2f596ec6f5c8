"""What an aggregation keeps from round to round: momenta, second moments, control variates.

Nothing has to be declared: it is whatever the attributes of a Flower `Strategy` hold, stock ones
and others. Arrays, tensors, Flower's records, plain values and containers of those are saved;
functions are code, and stay; of anything else nobody could say how to bring it back, so it is
refused.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedlearn.records import to_arrays, to_tensors
from fedlearn.tensor_files import check_type

_CODE = (FunctionType, BuiltinFunctionType, MethodType, partial, type)

_MAPPINGS: dict[str, Callable[[dict[Any, Any]], Any]] = {
    "dict": dict,
    "ConfigRecord": ConfigRecord,
    "MetricRecord": MetricRecord,
}


class UnsavableError(ValueError):
    """An aggregation keeps something that a checkpoint cannot hold; the message names it."""


def capture(aggregation: Strategy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return copies of what an aggregation keeps.

    Returns:
        Tensors by name, and JSON values that refer to them.

    Raises:
        UnsavableError: It keeps something that cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    values = _of_strategy(aggregation, "", tensors)
    return tensors, values


def bring_back(
    aggregation: Strategy, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Give an aggregation what one like it was keeping when it was captured.

    Args:
        aggregation: Newly built, of the same configuration.
        tensors: As captured.
        values: Likewise.
    """
    for name, told in values.items():
        if isinstance(told, Mapping) and "strategy" in told:
            bring_back(getattr(aggregation, name), tensors, told["strategy"])
        else:
            setattr(aggregation, name, _decoded(told, tensors))


def _of_strategy(strategy: Strategy, parent: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        path = f"{parent}{name}"
        if isinstance(value, Strategy):
            values[name] = {"strategy": _of_strategy(value, f"{path}.", tensors)}
        elif not isinstance(value, _CODE):
            values[name] = _encoded(value, path, tensors)
    return values


def _encoded(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON; its tensors are put aside under names that begin with `path`."""
    kind = type(value)
    if isinstance(value, np.generic | np.ndarray):
        try:
            tensor = torch.from_numpy(np.array(value))
        except TypeError as error:
            raise UnsavableError(f"{path}, of {value.dtype}") from error
        return {"array" if isinstance(value, np.ndarray) else "scalar": _put(tensor, path, tensors)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return {"bytes": _put(torch.tensor([*value], dtype=torch.uint8), path, tensors)}
    if kind is Tensor:
        return {"tensor": _put(value.detach().clone(), path, tensors)}
    if isinstance(value, ArrayRecord):
        found = to_tensors(value).items()  # by reference: what a record holds is not written to
        return {"arrays": [[name, _put(each, f"{path}.{name}", tensors)] for name, each in found]}
    if kind in (list, tuple):
        inside = [_encoded(each, f"{path}.{at}", tensors) for at, each in enumerate(value)]
        return {kind.__name__: inside}
    if kind in (dict, ConfigRecord, MetricRecord):
        for key in value:
            if not isinstance(key, str | int):
                raise UnsavableError(f"{path}, with {key!r} for a key")
        inside = [[key, _encoded(each, f"{path}.{key}", tensors)] for key, each in value.items()]
        return {kind.__name__: inside}
    raise UnsavableError(f"{path}, a {kind.__name__}")


def _put(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    """Put a tensor aside; return its name."""
    try:
        check_type(tensor.dtype)
    except ValueError as error:
        raise UnsavableError(f"{path}, of {tensor.dtype}") from error
    while path in tensors:  # 1 and "1" are two keys
        path += "'"
    tensors[path] = tensor
    return path


def _decoded(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(told, Mapping):
        return told
    ((kind, value),) = told.items()
    if kind in ("array", "scalar"):
        array = np.array(tensors[value].cpu().numpy())  # a copy: strategies write into theirs
        return array if kind == "array" else array[()]
    if kind == "tensor":
        return tensors[value].clone()
    if kind == "bytes":
        return bytes(tensors[value].tolist())
    if kind == "arrays":
        return to_arrays({name: tensors[path] for name, path in value})
    if kind in ("list", "tuple"):
        found = [_decoded(each, tensors) for each in value]
        return found if kind == "list" else tuple(found)
    return _MAPPINGS[kind]({key: _decoded(each, tensors) for key, each in value})
