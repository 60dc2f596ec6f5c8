"""IDX, the format of MNIST's files: a magic number, big-endian sizes, then the bytes.

Layout as in Yann LeCun's description: two zero bytes, the element type (8: unsigned byte), the
number of dimensions, each dimension as a big-endian 32-bit integer, the elements in C order.
"""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scenarios.files import read_array

UNSIGNED_BYTE = 8


def read_idx(path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    """Return the array in the IDX file at `path`, plain or packed (see `read_array`).

    Args:
        path: The file.
        num_dimensions: How many dimensions the array must have.

    Raises:
        ValueError: If the file cannot be read or unpacked, is of another type or rank, or holds
            fewer or more bytes than its header says. Nothing of the claimed size is allocated.
    """
    content = read_array(path)
    magic = bytes([0, 0, UNSIGNED_BYTE, num_dimensions])
    if content[:4].tobytes() != magic:
        raise ValueError(
            f"{path}: starts with 0x{content[:4].tobytes().hex()}, must be 0x{magic.hex()} "
            f"(IDX, {num_dimensions} dimensions of bytes)"
        )
    header = 4 + 4 * num_dimensions
    if len(content) < header:
        raise ValueError(f"{path}: ends within its {header}-byte header")
    sizes = struct.unpack(f">{num_dimensions}I", content[4:header].tobytes())
    if len(content) - header != math.prod(sizes):
        raise ValueError(
            f"{path}: holds {len(content) - header} bytes of data, its header says "
            f"{' x '.join(map(str, sizes))} = {math.prod(sizes)}"
        )
    return content[header:].reshape(sizes)
