"""Packing: all arrays of a message as one, because Flower asks for each of them by itself.

A message of a ResNet-18 has 122 arrays, which Flower moves as 245 objects, one call each and four
times over (server, SuperLink, SuperNode, app). Packed, it is a handful, whatever the model.
"""

import json
import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedlearn import records
from fedlearn.config.errors import one_line

PACKED, LAYOUT = "fedlearn.packed", "fedlearn.layout"
"""Keys of the one array, and of what it is made of."""

ALIGNED = 64
"""Bytes: every tensor begins at a multiple, so that it can be used where it lies."""

_DTYPES = {
    str(each).removeprefix("torch."): each
    for each in vars(torch).values()
    if isinstance(each, torch.dtype) and not str(each).startswith(("torch.q", "torch.bits"))
}
"""By name: of all that is plain numbers."""

Layout = list[tuple[str, list[tuple[str, str, list[int]]]]]
"""Of each record, its key, and name, dtype and shape of each of its arrays, in their order."""


def packer() -> Callable[[RecordDict], RecordDict]:
    """Return what packs contents; records that several of them share are packed once."""
    # what was packed is kept, or another record could come to have its id
    done: dict[tuple[tuple[str, int], ...], tuple[dict[str, ArrayRecord], ArrayRecord, str]] = {}

    def pack(content: RecordDict) -> RecordDict:
        of_arrays = records.of_kind(content, ArrayRecord)
        key = tuple((name, id(each)) for name, each in of_arrays.items())
        if key not in done:
            done[key] = of_arrays, *_pack(of_arrays)
        _, packed, layout = done[key]
        others = {name: each for name, each in content.items() if name not in of_arrays}
        return RecordDict({**others, PACKED: packed, LAYOUT: ConfigRecord({"layout": layout})})

    return pack


def _pack(of_arrays: dict[str, ArrayRecord]) -> tuple[ArrayRecord, str]:
    layout: Layout = []
    pieces: list[bytes] = []
    for key, arrays in of_arrays.items():
        tensors = records.to_tensors(arrays)
        layout.append((key, []))
        for name, tensor in tensors.items():
            layout[-1][1].append((name, str(tensor.dtype).removeprefix("torch."), [*tensor.shape]))
            piece = _bytes_of(tensor)
            pieces += [piece, bytes(-len(piece) % ALIGNED)]
    data = b"".join(pieces)
    array = Array("uint8", (len(data),), "raw", data)
    return ArrayRecord({PACKED: array}), json.dumps(layout)


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one number is contiguous with any stride
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def unpack(content: RecordDict) -> RecordDict:
    """Return a content as it was packed; one that is not packed is returned as it is.

    Raises:
        ValueError: It does not hold what it declares.
    """
    if PACKED not in content:
        return content
    arrays, told = content[PACKED], content.get(LAYOUT)
    if not isinstance(arrays, ArrayRecord) or not isinstance(told, ConfigRecord):
        raise ValueError("a packed message without its layout")
    others = {name: each for name, each in content.items() if name not in (PACKED, LAYOUT)}
    try:
        layout: Layout = json.loads(cast(str, told["layout"]))
        (array,) = arrays.values()
        return RecordDict({**_unpack(layout, array.data), **others})
    # RuntimeError is torch's for a view that cannot be, and Python's for JSON that is too deep
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        why = one_line(error)[:200]
        raise ValueError(f"a packed message that cannot be read: {why}") from error


def _unpack(layout: Layout, data: bytes) -> dict[str, ArrayRecord]:
    # a copy of our own: tensors may be written to, and their memory is aligned
    buffer = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    made: dict[str, ArrayRecord] = {}
    at = 0
    for key, arrays in layout:
        tensors: dict[str, Tensor] = {}
        for name, kind, shape in arrays:
            if kind not in _DTYPES or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"array {name!r} of {kind}{shape}")
            dtype = _DTYPES[kind]
            size = math.prod(shape) * dtype.itemsize
            if at + size > len(data):
                raise ValueError(f"{len(data)} bytes are too few")
            piece = buffer[at : at + size]
            tensors[name] = (piece.view(dtype) if size else piece.to(dtype)).reshape(shape)
            at += size + -size % ALIGNED
        made[key] = records.to_arrays(tensors)
    if at != len(data):
        raise ValueError(f"{len(data)} bytes are too many")
    return made


def packed(reply: Message) -> Message:
    """Return a reply with its content packed."""
    if reply.has_content():
        reply.content = packer()(reply.content)
    return reply


def unpacked(reply: Message) -> Message:
    """Return a reply with its content as it was packed.

    Raises:
        ValueError: It does not hold what it declares.
    """
    if reply.has_content():
        reply.content = unpack(reply.content)
    return reply
