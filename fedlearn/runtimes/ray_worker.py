"""What runs in a Ray actor: Flower's own one, which is given a job where it expects a message.

Tensors travel as NumPy buffers beside a pickled object, because Ray hands those out as views of its
object store: all actors of a machine read one copy of the samples and of the global model. Such
tensors are read-only; whoever writes to one crashes the actor.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

import fedlearn
from fedlearn.client import Client, make_client_app
from fedlearn.runtimes.arenas import Extent, Ref, bytes_of, name_of
from fedlearn.runtimes.process import TurnTaker
from fedlearn.runtimes.shared import Parcel, dumps, dumps_any, loads
from fedlearn.runtimes.worker import Handle, Raised, keep_memory
from fedlearn.spans import Span, drain, recording

Buffers = dict[int, np.ndarray[Any, Any]]
"""Tensors' bytes, by their numbers."""


@dataclass
class Packed:
    """An object and, beside it, its tensors.

    Attributes:
        blob: The pickled object.
        buffers: Its tensors.
    """

    blob: bytes
    buffers: Buffers

    @classmethod
    def of(cls, obj: Any, packed: Callable[[Parcel], Any] | None = None) -> "Packed":
        """Pack anything that pickles.

        Args:
            obj: With tensors anywhere inside.
            packed: Called with each parcel inside.
        """
        buffers: Buffers = {}
        return cls(dumps(obj, _placing(buffers), packed), buffers)

    @classmethod
    def of_any(cls, obj: Any) -> "Packed":
        """Pack what holds functions that cannot be imported."""
        buffers: Buffers = {}
        return cls(dumps_any(obj, _placing(buffers)), buffers)

    def open(self, unpacked: Callable[[Parcel], Any] | None = None) -> Any:
        """Return the object; its tensors are views.

        Args:
            unpacked: Called with each parcel inside.
        """
        return loads(self.blob, lambda ref: view(self.buffers, ref), unpacked)


@dataclass
class Box:
    """What an actor keeps for a parcel: what it is given, and then what is to be kept instead.

    Attributes:
        buffers: The parcel's tensors.
    """

    buffers: Buffers = field(default_factory=dict)


class BoxKeeper:
    """Opens and packs a client's state, as `fedlearn.runtimes.keeper.Keeper` does in a process.

    A tensor that was opened and is packed again keeps its number: so a state that stays as it was
    is pickled to the same bytes.
    """

    def __init__(self, box: Box, number: int) -> None:
        """Make a keeper.

        Args:
            box: Holds the tensors of what is opened, and takes those of what is packed.
            number: Of the parcel that is packed.
        """
        self._box = box
        self._number = number
        self._opened: dict[tuple[Any, ...], tuple[int, Tensor, int]] = {}

    def open(self, parcel: Parcel) -> Any:
        """Return what is in the parcel."""
        return loads(parcel.blob, self._take)

    def pack(self, obj: Any) -> Parcel:
        """Return `obj` as a parcel, its tensors in the box."""
        before, after = self._box.buffers, Buffers()
        fresh = count(1 + max(before, default=-1))
        placing = _placing(after, fresh)

        def place(tensor: Tensor) -> Ref:
            opened = self._opened.get(_key(tensor))
            if opened is None or opened[1]._version != opened[2]:
                return placing(tensor)
            number = opened[0]
            after[number] = before[number]
            return _ref(number, tensor)

        blob = dumps(obj, place)
        self._box.buffers = after
        return Parcel(self._number, blob, ())

    def _take(self, ref: Ref) -> Tensor:
        tensor = view(self._box.buffers, ref)
        self._opened[_key(tensor)] = ref.extent.offset, tensor, tensor._version
        return tensor


@dataclass(frozen=True)
class Given:
    """What an actor is given where Flower's expects a message.

    Attributes:
        number: Of the job, and of the parcel that it packs.
        job: A packed `fedlearn.runtimes.process.Job`.
    """

    number: int
    job: Packed


@dataclass(frozen=True)
class Answer:
    """What it returns.

    Attributes:
        result: Packed: what the handle returned, or `Raised`.
        spans: What it recorded.
    """

    result: Packed
    spans: Sequence[Span]


@dataclass(frozen=True)
class TurnTakers:
    """Makes what takes turns in an actor.

    Attributes:
        client: What the clients share.
        threads: That torch may use.
        on_gpu: Whether the model and the samples go to the GPU that Ray gave the actor.
    """

    client: Client
    threads: int
    on_gpu: bool

    def __call__(self) -> TurnTaker:
        """Make one, in the process that this is called in."""
        torch.set_num_threads(self.threads)
        keep_memory()
        client = self.client
        if self.on_gpu:
            device = torch.device("cuda", 0)  # Ray hides the others
            client = client.on(device, client.scenario.to(device))
        return TurnTaker(make_client_app(client))


@dataclass(frozen=True)
class App:
    """Stands for the ClientApp in Flower's actor, which calls it to load one.

    Attributes:
        run: Distinguishes the pool from others whose actors were the same process.
        make: Where what makes the handle is in Ray's store, packed.
        round: Changes with each call of the pool's ``map``.
        shared: Where what all jobs share is.
        version: Of fedlearn, in the main process.
        recording: Whether spans are recorded.
    """

    run: str
    make: Sequence["ray.ObjectRef[Packed]"]
    round: int
    shared: Sequence["ray.ObjectRef[Packed]"]
    version: str
    recording: bool

    def __call__(self) -> Callable[..., Answer]:
        """Return the app."""
        return self._answer

    def _answer(self, message: Given, context: Box) -> Answer:
        """Do a job; `context` holds the client's state, and then its new one."""
        with recording() if self.recording else nullcontext():
            try:
                handle, shared = _here(self)
                keeper = BoxKeeper(context, message.number)
                result = handle(message.job.open(), shared, keeper)
            except Exception as error:
                result = Raised.by(error)
            return Answer(Packed.of(result), drain())


_handles: dict[str, Handle] = {}
_shared: dict[str, tuple[int, Any]] = {}


def _here(app: App) -> tuple[Handle, Any]:
    """Return what does jobs in this process, and what the round's jobs share."""
    if app.run not in _handles:
        if app.version != fedlearn.__version__:
            raise RuntimeError(
                f"fedlearn {fedlearn.__version__} is installed on {os.uname().nodename}, and the "
                f"run is one of {app.version}; install the same on every machine"
            )
        _handles[app.run] = ray.get(app.make[0]).open()()
    known = _shared.get(app.run)
    if known is None or known[0] != app.round:
        _shared[app.run] = known = app.round, ray.get(app.shared[0]).open()
    return _handles[app.run], known[1]


def view(buffers: Buffers, ref: Ref) -> Tensor:
    """Return a tensor of which `buffers` has the bytes."""
    with warnings.catch_warnings():  # that it must not be written to is this module's promise
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        flat = torch.frombuffer(buffers[ref.extent.offset], dtype=getattr(torch, ref.dtype))
    return flat.view(ref.shape)


def _placing(buffers: Buffers, numbers: Iterator[int] | None = None) -> Callable[[Tensor], Ref]:
    """Return what puts tensors into `buffers`."""
    fresh = count() if numbers is None else numbers

    def place(tensor: Tensor) -> Ref:
        number = next(fresh)
        buffers[number] = bytes_of(tensor.detach().contiguous())
        return _ref(number, tensor)

    return place


def _ref(number: int, tensor: Tensor) -> Ref:
    return Ref(Extent(0, number, 0), 0, tuple(tensor.shape), None, name_of(tensor.dtype))


def _key(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
