"""Files of named tensors, in the safetensors format, and of JSON values beside them.

Written here tensor by tensor, so that a large state is never in memory twice, two names may share
one tensor, and a full disk is an `OSError`; the format is a length, a JSON header and the bytes.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load
from torch import Tensor

DRAFT = ".tmp"
"""The end of the name of what is not whole."""

_MOVED = "moved"
"""Key of the header's metadata that names the tensors that were on some other device."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def check_type(dtype: torch.dtype) -> None:
    """Check that a file can hold tensors of this type.

    Raises:
        ValueError: It cannot.
    """
    if dtype not in _NAMES:
        raise ValueError(f"tensors of {dtype} cannot be saved")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors and have them on disk.

    Args:
        path: Replaced if it is there.
        tensors: By name; on any device.

    Returns:
        The file's sha256.

    Raises:
        OSError: The disk is full, or has another fault.
    """
    return write(path, _pieces(tensors))


def write_values(path: Path, values: Any) -> str:
    """Write JSON values as `write_tensors` writes tensors; infinity and NaN are as they are."""
    return write(path, [json.dumps(values).encode()])


def write(path: Path, pieces: Iterable[Any]) -> str:
    """Write bytes and have them on disk; return their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def read_tensors(path: Path, sha256: str, device: torch.device) -> dict[str, Tensor]:
    """Return a file's tensors.

    Args:
        path: The file.
        sha256: What it must have.
        device: Where those go that were not in the host's memory.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    data = read(path, sha256)
    try:
        (length,) = struct.unpack_from("<Q", data)
        moved = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_MOVED])
        tensors = load(data)
    except (safetensors.SafetensorError, struct.error, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    return tensors | {name: tensors[name].to(device) for name in moved}


def read_values(path: Path, sha256: str) -> Any:
    """Return a file's JSON values, as `read_tensors` returns tensors."""
    return json.loads(read(path, sha256))


def read(path: Path, sha256: str) -> bytes:
    """Return a file's bytes.

    Raises:
        ValueError: They have another checksum.
        OSError: They cannot be read.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path.name} has another checksum")
    return data


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """Yield the bytes of a file, the header first."""
    moved = [name for name, tensor in tensors.items() if tensor.device.type != "cpu"]
    header: dict[str, Any] = {"__metadata__": {_MOVED: json.dumps(moved)}}
    end = 0
    for name, tensor in tensors.items():
        check_type(tensor.dtype)
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    yield struct.pack("<Q", len(text)) + text
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().view(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def draft_of(path: Path) -> Path:
    """Return the name that something has until it is whole, or from when it is going."""
    return path.with_name(f"{path.name}{DRAFT}")


def synchronise(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
