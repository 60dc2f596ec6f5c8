"""What an Avalanche strategy remembers, as named tensors and plain values, and back.

A strategy keeps its memory in attributes: dictionaries of importances, a teacher, reservoirs of
samples. `capture` writes the attributes at given dotted paths (``plugins.0.importances``) into a
`State`; `restore` reads them back into a new strategy, bit for bit. There is no pickle: a type that
is not listed in `_write` is refused.

Samples are written as (experience, row) pairs, and modules as their tensors; reading takes the
architecture from the module that stands at the path in the new strategy, or from the local model
where there is none yet.
"""

import copy
import json
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.utils import ParamData
from torch import Tensor, nn

from fedlearn.types import State
from strategies.continual.avalanche.dataset import (
    IDENTITY,
    Stream,
    attribute_of,
    dataset_of,
    identity,
)
from strategies.continual.reservoir import Reservoir

TREE = "tree"
"""The state's value that holds the structure, as JSON."""


def capture(strategy: Any, paths: tuple[str, ...], state: State) -> None:
    """Add to `state` what `strategy` holds at `paths`.

    Tensors are not copied unless they are, or look into, a parameter or buffer of the model: the
    strategy must not be used any more.

    Raises:
        TypeError: An attribute holds something that cannot be kept.
    """
    writer = _Writer(state.tensors, strategy.model)
    tree = {path: writer.write(_resolve(strategy, path), path) for path in paths}
    state.values[TREE] = json.dumps(tree, separators=(",", ":"))


def restore(strategy: Any, state: State) -> None:
    """Give `strategy` what `capture` wrote; `state` is neither changed nor referred to."""
    tree = state.values.get(TREE)
    if tree is None:
        return
    reader = _Reader(state.tensors, strategy.model, strategy.device, strategy.stream)
    for path, node in json.loads(str(tree)).items():
        live = _resolve(strategy, path)
        value = reader.read(node, live)
        if isinstance(live, dict):  # its factory, where it is a defaultdict, stays
            live.clear()
            live.update(value)
        else:
            owner, _, name = path.rpartition(".")
            setattr(_resolve(strategy, owner), name, value)


def _resolve(value: Any, path: str) -> Any:
    """Return what `path` leads to from `value`: attributes, keys and positions."""
    for part in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list | tuple):
            value = value[int(part)]
        else:
            value = getattr(value, part)
    return value


class _Writer:
    """Turns values into JSON nodes and tensors."""

    def __init__(self, tensors: dict[str, Tensor], model: nn.Module) -> None:
        self._tensors = tensors
        live = (*model.parameters(), *model.buffers())
        self._live = {tensor.untyped_storage().data_ptr() for tensor in live}

    def write(self, value: Any, path: str) -> Any:
        """Return the node of `value`; its tensors are named after `path`."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._keep(value, path)}
        if isinstance(value, ParamData):
            return {"param": value.name, "data": self._keep(value.data, path)}
        if isinstance(value, dict) and all(isinstance(key, int | str) for key in value):
            items = [[key, self.write(item, f"{path}/{key}")] for key, item in value.items()]
            return {"dict": items}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.write(item, f"{path}/{at}") for at, item in enumerate(value)]}
        if isinstance(value, set) and all(isinstance(item, int) for item in value):
            return {"set": sorted(value)}
        if isinstance(value, nn.Module):
            state = value.state_dict()
            return {"module": {name: self._keep(state[name], f"{path}/{name}") for name in state}}
        if isinstance(value, ReservoirSamplingBuffer):
            samples = self.write(value.buffer, path)
            weights = self._keep(value._buffer_weights, f"{path}/weights")
            return {"reservoir": value.max_size, "samples": samples, "weights": weights}
        if isinstance(value, Reservoir):
            rows = self._keep(value.rows, f"{path}/rows")
            return {
                "by_rank": value.size,
                "rows": rows,
                "keys": self._keep(value.keys, f"{path}/keys"),
            }
        if isinstance(value, AvalancheDataset):
            return self._write_samples(value, path)
        raise TypeError(f"{path}: a {type(value).__name__} cannot be kept between turns")

    def _write_samples(self, dataset: Any, path: str) -> Any:
        """Return the node of an Avalanche data set."""
        extra = {}
        if len(dataset):
            for name, attribute in dataset._data_attributes.items():
                if name not in IDENTITY:
                    extra[name] = self._keep(torch.stack(list(attribute)), f"{path}/{name}")
        return {"rows": self._keep(identity(dataset), f"{path}/rows"), "extra": extra}

    def _keep(self, tensor: Tensor, path: str) -> str:
        """Store `tensor` under `path`, as a copy where training or a larger tensor owns it."""
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._live or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        while path in self._tensors:  # of keys 1 and "1", or a key with a slash in it
            path += "'"
        self._tensors[path] = tensor
        return path


class _Reader:
    """Turns JSON nodes and tensors into values."""

    def __init__(
        self, tensors: dict[str, Tensor], model: nn.Module, device: torch.device, stream: Stream
    ) -> None:
        self._tensors = tensors
        self._model = model
        self._device = device
        self._stream = stream

    def read(self, node: Any, live: Any = None) -> Any:
        """Return the value of `node`.

        Args:
            node: What a `_Writer` wrote.
            live: What stands in its place now.
        """
        match node:
            case {"tensor": path}:
                return self._copy(path)
            case {"param": name, "data": path}:
                data = self._copy(path)
                return ParamData(name, data.shape, init_tensor=data, device=data.device)
            case {"dict": items}:
                return {key: self.read(item) for key, item in items}
            case {"list": items}:
                return [self.read(item) for item in items]
            case {"tuple": items}:
                return tuple(self.read(item) for item in items)
            case {"set": items}:
                return set(items)
            case {"module": names}:
                tensors = {name: self._tensors[path] for name, path in names.items()}
                if isinstance(live, nn.Module):  # as trainable as it is made
                    module = copy.deepcopy(live).to(self._device)
                    module.load_state_dict(tensors)
                    return module
                module = copy.deepcopy(self._model)
                module.load_state_dict(tensors)
                return module.eval().requires_grad_(False)
            case {"reservoir": size, "samples": samples, "weights": weights}:
                buffer = ReservoirSamplingBuffer(size)
                buffer.buffer = self.read(samples)
                buffer._buffer_weights = self._tensors[weights].clone()
                return buffer
            case {"by_rank": size, "rows": rows, "keys": keys}:
                return Reservoir(size, self._tensors[rows].clone(), self._tensors[keys].clone())
            case {"rows": path, "extra": names}:
                extra = [
                    attribute_of(name, self._tensors[extra].clone())
                    for name, extra in names.items()
                ]
                return dataset_of(self._stream, self._tensors[path], extra)
            case _:
                return node

    def _copy(self, path: str) -> Tensor:
        """Return a copy on the device: what reads it may change it in place."""
        return self._tensors[path].to(self._device, copy=True)
