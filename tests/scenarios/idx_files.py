"""Small data sets in MNIST's four files, for tests."""

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NAMES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "t10k-images": "t10k-images-idx3-ubyte",
    "t10k-labels": "t10k-labels-idx1-ubyte",
}


def encode(array: NDArray[np.uint8]) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def contents() -> dict[str, bytes]:
    """A small data set in MNIST's format: 20 training and 10 test images."""
    rng = np.random.default_rng(0)
    return {
        name: encode(
            rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
            if name.endswith("images")
            else np.arange(size, dtype=np.uint8) % 10
        )
        for size, part in ((20, "train"), (10, "t10k"))
        for name in (f"{part}-images", f"{part}-labels")
    }


def write(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if packed:
            (folder / f"{NAMES[name]}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / NAMES[name]).write_bytes(content)
    return folder
