"""Memory, and files, that hold tensors for several processes.

Each of these spaces has one owner, which allocates in it; all others read. What is in memory is
read without copying: such views are read-only by convention, for whoever writes to one changes
what others read.
"""

import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 64
SPACE = 1 << 44
"""Bytes of address space that the arenas of a pool share; most of it is never touched."""
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(os, "memfd_create") else 0)
"""Newer Pythons name it; without it some machines refuse to map more than they have."""


class Extent(NamedTuple):
    """A piece of an arena: its number, where the piece begins and how long it is, in bytes."""

    arena: int
    offset: int
    size: int


class Ref(NamedTuple):
    """A tensor in an arena: the extent, the first element in it, the shape, strides and type."""

    extent: Extent
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    dtype: str

    @property
    def span(self) -> int:
        """How many elements there are from the first to the last."""
        if self.stride is None:
            return torch.Size(self.shape).numel()
        return 1 + sum(
            (each - 1) * step for each, step in zip(self.shape, self.stride, strict=True)
        )


class Allocator:
    """Hands out pieces of a space that only its owner allocates in.

    Sizes are rounded up by at most an eighth, and a freed piece serves the next request of its
    size: the same shapes come again and again.
    """

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self.top = 0
        self._free: dict[int, list[int]] = {}

    def allocate(self, num_bytes: int) -> Extent:
        """Return a piece of at least `num_bytes`.

        Raises:
            MemoryError: The space is used up.
        """
        step = max(ALIGNMENT, (1 << num_bytes.bit_length()) >> 4)
        size = -(-num_bytes // step) * step
        free = self._free.get(size)
        if free:
            return Extent(self.number, free.pop(), size)
        if self.top + size > self.size:
            raise MemoryError(f"{size} bytes do not fit into an arena of {self.size} bytes")
        offset, self.top = self.top, self.top + size
        return Extent(self.number, offset, size)

    def free(self, offset: int, size: int) -> None:
        """Take back an extent."""
        self._free.setdefault(size, []).append(offset)

    def reset(self) -> None:
        """Take back everything."""
        self.top = 0
        self._free.clear()

    def adopt(self, live: Iterable[tuple[int, int]]) -> None:
        """Go on where another owner left these (offset, size) in use; the rest is returned."""
        self.reset()
        for offset, size in sorted(live):
            self._give_back(self.top, offset)
            self.top = offset + size
        self._give_back(self.top, self.size)

    def _give_back(self, begin: int, end: int) -> None:
        """Return what lies between to the machine."""


class Arena(Allocator):
    """Memory that processes share by mapping it.

    Attributes:
        number: Which of a pool's arenas it is.
        fd: Of the memory, for processes that do not inherit the mapping.
        address: Where it begins in this process.
    """

    def __init__(self, number: int, size: int, fd: int | None = None, private: bool = False):
        """Map an arena.

        Args:
            number: Which of a pool's arenas it is.
            size: Bytes of address space; less is taken where the machine refuses so much.
            fd: Of an arena that another process made; None to make one.
            private: Whether what is written here stays in this process.
        """
        made = _make_memory() if fd is None else fd
        weakref.finalize(self, os.close, made)
        self._memory, size = _map(made, size, fd is None, private)
        super().__init__(number, size)
        self.fd = made
        self._bytes = memoryview(self._memory)
        self.address = torch.frombuffer(self._memory, dtype=torch.uint8, count=1).data_ptr()

    def __contains__(self, address: int) -> bool:
        return self.address <= address < self.address + self.size

    def put(self, tensor: Tensor) -> Ref:
        """Copy in a CPU tensor, which is not empty."""
        extent = self.allocate(tensor.numel() * tensor.element_size())
        torch.frombuffer(
            self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=extent.offset
        ).view(tensor.shape).copy_(tensor.detach())
        return Ref(extent, 0, tuple(tensor.shape), None, name_of(tensor.dtype))

    def view(self, ref: Ref, when_unused: Callable[[Extent], Any] | None = None) -> Tensor:
        """Return the tensor, not a copy.

        Args:
            ref: Where it is.
            when_unused: Called with the extent once no tensor looks at it through this view.
        """
        dtype, shape = getattr(torch, ref.dtype), ref.shape
        if when_unused is None:
            flat = torch.frombuffer(
                self._memory, dtype=dtype, count=ref.start + ref.span, offset=ref.extent.offset
            )
        else:  # the storage holds on to the slice, and the slice says when it dies
            offset, size = ref.extent.offset, ref.extent.size
            piece = self._bytes[offset : offset + size]
            weakref.finalize(piece, when_unused, ref.extent).atexit = False
            flat = torch.frombuffer(piece, dtype=dtype, count=ref.start + ref.span)
        if ref.stride is None and ref.start == 0:
            return flat.view(shape)
        return flat.as_strided(shape, ref.stride or _contiguous(shape), ref.start)

    def put_bytes(self, data: bytes) -> Extent:
        """Copy bytes in."""
        extent = self.allocate(len(data))
        self._bytes[extent.offset : extent.offset + len(data)] = data
        return extent

    def bytes_at(self, offset: int, length: int) -> memoryview:
        """Return bytes, not a copy."""
        return self._bytes[offset : offset + length]

    def _give_back(self, begin: int, end: int) -> None:
        page = mmap.PAGESIZE
        begin, end = -(-begin // page) * page, end // page * page
        if begin < end and hasattr(mmap, "MADV_REMOVE"):
            self._memory.madvise(mmap.MADV_REMOVE, begin, end - begin)


class Shelf(Allocator):
    """A file whose tensors are read when they are needed, and count in nobody's memory."""

    def __init__(self, number: int, folder: Path | None, fd: int | None = None) -> None:
        """Open a shelf.

        Args:
            number: Which of a pool's arenas it is.
            folder: Where to make the file, which has no name: it goes with its last process.
            fd: Of a shelf that another process made.
        """
        super().__init__(number, 1 << 62)
        if fd is None:
            with tempfile.TemporaryFile(dir=folder) as file:
                fd = os.dup(file.fileno())
        self.fd = fd
        weakref.finalize(self, os.close, fd)

    def put(self, tensor: Tensor) -> Ref:
        """Write a CPU tensor, which is not empty."""
        extent = self.allocate(tensor.numel() * tensor.element_size())
        plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        rest, offset = memoryview(bytes_of(plain)), extent.offset
        while rest:
            written = os.pwrite(self.fd, rest, offset)
            rest, offset = rest[written:], offset + written
        return Ref(extent, 0, tuple(tensor.shape), None, name_of(tensor.dtype))

    def view(self, ref: Ref) -> Tensor:
        """Return the tensor, read into memory of its own.

        Raises:
            OSError: The file ends before it does.
        """
        flat = torch.empty(ref.start + ref.span, dtype=getattr(torch, ref.dtype))
        rest, offset = memoryview(bytes_of(flat)), ref.extent.offset
        while rest:
            read = os.preadv(self.fd, [rest], offset)
            if not read:
                raise OSError(f"shelf {self.number} ends at byte {offset}")
            rest, offset = rest[read:], offset + read
        return flat.as_strided(ref.shape, ref.stride or _contiguous(ref.shape), ref.start)


def make_arenas(count: int) -> list[Arena]:
    """Return arenas numbered from 0, which share the address space that there is."""
    return [Arena(number, min(1 << 40, SPACE // count)) for number in range(count)]


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type in torch, the same object each time: it pickles once."""
    return sys.intern(str(dtype).removeprefix("torch."))


def bytes_of(tensor: Tensor) -> Any:
    """Return the bytes of a contiguous tensor, not a copy."""
    return tensor.view(-1).view(torch.uint8).numpy()


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride, strides = 1, []
    for each in reversed(shape):
        strides.append(stride)
        stride *= each
    return tuple(reversed(strides))


def _make_memory() -> int:
    """Return a descriptor of memory that has no name and goes with its last process."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fedlearn")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _map(fd: int, size: int, resize: bool, private: bool) -> tuple[mmap.mmap, int]:
    """Map `size` bytes, or as many halvings less as the machine allows; return them too."""
    kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    while True:
        try:
            if resize:
                os.ftruncate(fd, size)
            return mmap.mmap(fd, size, flags=kind | _NORESERVE), size
        except (OSError, OverflowError, ValueError):
            if not resize or size <= 1 << 24:
                raise
            size //= 2
