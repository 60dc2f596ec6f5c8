"""Objects with tensors in them, pickled so that the tensors stay where every process can read them.

`dumps` pickles any object with its tensors left out and placed in an arena (see
`fedlearn.runtimes.arenas`); `loads` puts views, which are read-only by convention, in their stead.
"""

import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from copyreg import dispatch_table
from dataclasses import dataclass
from typing import Any, Protocol

import cloudpickle  # type: ignore[import-untyped]
import torch
from torch import Tensor

from fedlearn.records import TensorArray
from fedlearn.runtimes.arenas import Extent, Ref, bytes_of, name_of

INLINE_BYTES = 256
"""Tensors up to so many bytes are pickled with the object that holds them."""

Place = Callable[[Tensor], Ref]
"""Puts a CPU tensor where others find it."""

Take = Callable[[Ref], Tensor]
"""Finds it again."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """An object that outlives the round in which a worker packed it.

    Attributes:
        number: Its own.
        blob: The pickled object.
        extents: Where its tensors lie, each once.
    """

    number: int
    blob: bytes
    extents: tuple[Extent, ...]


class Keeping(Protocol):
    """Keeps for later rounds, in a worker."""

    def pack(self, obj: Any) -> Parcel:
        """Return `obj`, anything that pickles, as a parcel."""
        ...

    def open(self, parcel: Parcel) -> Any:
        """Return what is in a parcel; its tensors may be read until the job is done."""
        ...


def dumps(obj: Any, place: Place, packed: Callable[[Parcel], Any] | None = None) -> bytes:
    """Pickle `obj`, its tensors placed once each.

    Args:
        obj: Anything that pickles, with tensors and `TensorArray`s anywhere inside.
        place: Where its tensors go.
        packed: Called with each parcel inside.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 5)
    pickler.dispatch_table = reducers(place, packed)
    pickler.dump(obj)
    return file.getvalue()


def dumps_any(obj: Any, place: Place) -> bytes:
    """Pickle `obj` as `dumps` does, functions and classes that cannot be imported included."""
    file = io.BytesIO()
    pickler = cloudpickle.Pickler(file, 5)
    pickler.dispatch_table = ChainMap(reducers(place), pickler.dispatch_table)
    pickler.dump(obj)
    return file.getvalue()


def loads(
    blob: bytes | memoryview, take: Take, unpacked: Callable[[Parcel], Any] | None = None
) -> Any:
    """Return what `dumps` pickled.

    Args:
        blob: The bytes.
        take: Returns the tensors that were placed.
        unpacked: Called with each parcel inside.
    """
    return _Unpickler(blob, take, unpacked).load()


def reducers(place: Place, packed: Callable[[Parcel], Any] | None = None) -> dict[type, Any]:
    """Return how to pickle what holds tensors: a dispatch table for a pickler."""
    placed: dict[tuple[Any, ...], tuple[Ref, Tensor]] = {}

    def reduce_tensor(tensor: Tensor) -> Any:
        if tensor.requires_grad or tensor.layout != torch.strided or tensor.is_quantized:
            return tensor.__reduce_ex__(5)  # type: ignore[no-untyped-call]
        if tensor.device.type != "cpu":
            return _moved, (tensor.cpu(), str(tensor.device))
        if tensor.numel() * tensor.element_size() <= INLINE_BYTES:
            data = bytes(bytes_of(tensor.contiguous())) if tensor.numel() else b""
            return _inline, (data, tuple(tensor.shape), name_of(tensor.dtype))
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in placed:  # the tensor is kept, or its address could be another's
            placed[key] = (place(tensor), tensor)
        return _take, (placed[key][0],)

    def reduce_parcel(parcel: Parcel) -> Any:
        if packed is not None:
            packed(parcel)
        return _parcel, (parcel.number, parcel.blob, parcel.extents)

    return {
        **dispatch_table,
        Tensor: reduce_tensor,
        TensorArray: lambda array: (TensorArray, (array.tensor,)),
        Parcel: reduce_parcel,
    }


class _Unpickler(pickle.Unpickler):
    """Gives the functions that need to know where tensors are what they need to know."""

    def __init__(
        self, blob: bytes | memoryview, take: Take, unpacked: Callable[[Parcel], Any] | None
    ) -> None:
        super().__init__(io.BytesIO(blob))
        self._take = take
        self._unpacked = unpacked

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__:
            if name == "_take":
                return self._take
            if name == "_parcel" and self._unpacked is not None:
                return self._unpack
        return super().find_class(module, name)

    def _unpack(self, number: int, blob: bytes, extents: tuple[Extent, ...]) -> Parcel:
        parcel = Parcel(number, blob, extents)
        assert self._unpacked is not None
        self._unpacked(parcel)
        return parcel


def _take(_: Ref) -> Tensor:
    raise pickle.UnpicklingError("made by fedlearn.runtimes.shared.dumps: read it with its loads")


def _parcel(number: int, blob: bytes, extents: tuple[Extent, ...]) -> Parcel:
    return Parcel(number, blob, extents)


def _inline(data: bytes, shape: tuple[int, ...], dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    if not data:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray(data), dtype=kind).view(shape)


def _moved(tensor: Tensor, device: str) -> Tensor:
    return tensor.to(device)
