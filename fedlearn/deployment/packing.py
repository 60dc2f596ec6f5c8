"""Packing: a message in as few of Flower's objects as can be, because each is a call by itself.

Flower moves a message of a ResNet-18, which has 122 arrays, as some 250 objects, one call each and
four times over (server, SuperLink, SuperNode, app). Packed, it is four, and one for each 4 MB.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError
from torch import Tensor

from fedlearn import records
from fedlearn.config.errors import one_line

HEAD, PIECE = "fedlearn.head", "fedlearn.piece."
"""Keys of what there is, and, with a number, of the arrays' bytes."""

PIECE_BYTES = 4 * 1024 * 1024
"""Of one piece at most: a call carries one, and several are under way at once."""

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
    """Return what packs contents; arrays that several of them share are packed once."""
    # what was packed is kept, or another record could come to have its id
    done: dict[tuple[tuple[str, int], ...], tuple[object, str, list[ConfigRecord]]] = {}

    def pack(content: RecordDict) -> RecordDict:
        of_arrays = records.of_kind(content, ArrayRecord)
        key = tuple((name, id(each)) for name, each in of_arrays.items())
        if key not in done:
            layout, data = pack_arrays(of_arrays)
            cuts = range(0, len(data), PIECE_BYTES)
            pieces = [ConfigRecord({"bytes": data[at : at + PIECE_BYTES]}) for at in cuts]
            done[key] = of_arrays, layout, pieces
        _, layout, pieces = done[key]
        others = RecordDict({k: each for k, each in content.items() if k not in of_arrays})
        told = recorddict_to_proto(others).SerializeToString()
        head = ConfigRecord({"layout": layout, "records": told})
        return RecordDict({HEAD: head, **{f"{PIECE}{n}": each for n, each in enumerate(pieces)}})

    return pack


def pack_arrays(of_arrays: dict[str, ArrayRecord]) -> tuple[str, bytes]:
    """Return what tells how arrays lie in a block of bytes, as JSON, and the block."""
    layout: Layout = []
    parts: list[bytes] = []
    for key, arrays in of_arrays.items():
        tensors = records.to_tensors(arrays)
        layout.append((key, []))
        for name, tensor in tensors.items():
            layout[-1][1].append((name, str(tensor.dtype).removeprefix("torch."), [*tensor.shape]))
            part = _bytes_of(tensor)
            parts += [part, bytes(-len(part) % ALIGNED)]
    return json.dumps(layout), b"".join(parts)


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one number is contiguous with any stride
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def unpack(content: RecordDict) -> RecordDict:
    """Return a content as it was packed; one that is not packed is returned as it is.

    Raises:
        ValueError: It does not hold what it declares.
    """
    if HEAD not in content:
        return content
    try:
        head = cast(ConfigRecord, content[HEAD])
        pieces = (content[f"{PIECE}{number}"] for number in range(len(content) - 1))
        parts = [cast(bytes, cast(ConfigRecord, piece)["bytes"]) for piece in pieces]
        told = ProtoRecordDict.FromString(cast(bytes, head["records"]))
        arrays = unpack_arrays(cast(str, head["layout"]), parts)
        return RecordDict({**arrays, **recorddict_from_proto(told)})
    except (ValueError, TypeError, KeyError, AttributeError, DecodeError) as error:
        why = one_line(error)[:200]
        raise ValueError(f"a packed message that cannot be read: {why}") from error


def unpack_arrays(layout: str, parts: Sequence[bytes]) -> dict[str, ArrayRecord]:
    """Return arrays by the keys of their records, in memory of their own.

    Args:
        layout: How they lie in the block.
        parts: The block, in pieces.

    Raises:
        ValueError: The block is not what the layout declares.
    """
    buffer = torch.empty(sum(map(len, parts)), dtype=torch.uint8)  # torch aligns it
    at = 0
    for part in parts:
        buffer.numpy()[at : at + len(part)] = np.frombuffer(part, dtype=np.uint8)
        at += len(part)
    try:
        return _unpack(json.loads(layout), buffer)
    # RuntimeError is torch's for a view that cannot be, and Python's for JSON that is too deep
    except (TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise ValueError(one_line(error)) from error


def _unpack(layout: Layout, buffer: Tensor) -> dict[str, ArrayRecord]:
    made: dict[str, ArrayRecord] = {}
    at = 0
    for key, arrays in layout:
        tensors: dict[str, Tensor] = {}
        for name, kind, shape in arrays:
            if kind not in _DTYPES or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"array {name!r} of {kind}{shape}")
            dtype = _DTYPES[kind]
            size = math.prod(shape) * dtype.itemsize
            if at + size > len(buffer):
                raise ValueError(f"{len(buffer)} bytes are too few")
            piece = buffer[at : at + size]
            tensors[name] = (piece.view(dtype) if size else piece.to(dtype)).reshape(shape)
            at += size + -size % ALIGNED
        made[key] = records.to_arrays(tensors)
    if at != len(buffer):
        raise ValueError(f"{len(buffer)} bytes are too many")
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
