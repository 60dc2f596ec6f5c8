"""Keeping: what a worker packs in one round and any worker opens in a later one."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedlearn.runtimes.arenas import Arena, Extent, Ref, Shelf
from fedlearn.runtimes.shared import Parcel, dumps, loads


class Keeper:
    """Packs and opens parcels in a worker.

    A tensor of a packed object is stored once: one that was opened in the same job is referred to
    where it lies, and one of what the main process sent is stored once a round, however many
    parcels hold it.
    """

    def __init__(self, own: Arena | Shelf, spaces: Sequence[Arena | Shelf], serial: int) -> None:
        """Make a keeper.

        Args:
            own: Where this worker keeps tensors.
            spaces: Every space of the pool by its number; the first is the main process's arena.
            serial: Distinguishes this worker from all others that there were.
        """
        self._own = own
        self._spaces = spaces
        self._next = serial << 40
        self._opened: dict[int, tuple[Ref, Tensor, int]] = {}  # by the address of the storage
        self._received: dict[tuple[Any, ...], Ref] = {}  # tensors of this round that are kept
        self._new: list[Extent] = []

    def pack(self, obj: Any) -> Parcel:
        """Return `obj`, anything that pickles, as a parcel."""
        extents: dict[Extent, None] = {}

        def place(tensor: Tensor) -> Ref:
            ref = self._place(tensor)
            extents[ref.extent] = None
            return ref

        blob = dumps(obj, place)
        self._next += 1
        return Parcel(self._next, blob, tuple(extents))

    def open(self, parcel: Parcel) -> Any:
        """Return what is in a parcel; its tensors may be read until the job is done."""
        return loads(parcel.blob, self._take)

    def begin_round(self) -> None:
        """Forget what the main process sent before."""
        self._received.clear()

    def end_job(self, sent: Sequence[Parcel]) -> None:
        """Free what was stored in the job that is over, but for what the sent parcels hold."""
        self._opened.clear()
        if self._new:
            needed = {extent for parcel in sent for extent in parcel.extents}
            unused = {extent for extent in self._new if extent not in needed}
            for extent in unused:
                self._own.free(extent.offset, extent.size)
            if unused:
                received = self._received.items()
                self._received = {k: ref for k, ref in received if ref.extent not in unused}
            self._new.clear()

    def _take(self, ref: Ref) -> Tensor:
        tensor = self._spaces[ref.extent.arena].view(ref)
        self._opened[tensor.untyped_storage().data_ptr()] = ref, tensor, tensor._version
        return tensor

    def _place(self, tensor: Tensor) -> Ref:
        opened = self._opened.get(tensor.untyped_storage().data_ptr())
        if opened is not None:
            ref, original, version = opened
            if tensor.dtype == original.dtype and tensor._version == version:
                return _within(ref, original, tensor)
        main = self._spaces[0]
        if not (isinstance(main, Arena) and tensor.data_ptr() in main):
            return self._put(tensor)
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._received:
            self._received[key] = self._put(tensor)
        return self._received[key]

    def _put(self, tensor: Tensor) -> Ref:
        ref = self._own.put(tensor)
        self._new.append(ref.extent)
        return ref


def _within(ref: Ref, original: Tensor, tensor: Tensor) -> Ref:
    """Return where a view of a tensor is, given where the tensor is: for itself, the very same."""
    start, shape, stride = int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()
    if (start, shape, stride) == (original.storage_offset(), original.shape, original.stride()):
        return ref
    return Ref(ref.extent, start, shape, stride, ref.dtype)
