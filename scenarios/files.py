"""Files of data sets: found, fetched with a digest, unpacked safely, read without running them.

Data sets are other people's files. Nothing here trusts what a file says of itself: an archive
cannot write outside its folder, a pickle can make arrays and nothing else, and every complaint
names the file.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import pickle
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}
_BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


def read_bytes(path: Path) -> bytes:
    """Return a file's content, unpacked where its name ends in ``.gz``, ``.bz2`` or ``.xz``.

    Raises:
        ValueError: It cannot be read or unpacked.
    """
    try:
        content = path.read_bytes()
        unpacked = _UNPACK.get(path.suffix)
        return content if unpacked is None else unpacked(content)
    except _BROKEN as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def read_array(path: Path) -> NDArray[np.uint8]:
    """Return a file's content, unpacked as by `read_bytes`, as an array that may be written to.

    Raises:
        ValueError: It cannot be read or unpacked.
    """
    if path.suffix in _UNPACK:
        return np.frombuffer(bytearray(read_bytes(path)), np.uint8)
    try:
        return np.fromfile(path, np.uint8)  # one copy of a large file, not two
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def find(root: str, names: Iterable[str], folders: Iterable[str] = (".",)) -> dict[str, Path]:
    """Return the path of each of `names`, all from the first folder that has them all.

    Args:
        root: Where to look; ``~`` is the home folder.
        names: File names, each of which may be there with ``.gz``, ``.bz2`` or ``.xz`` added.
        folders: Places under `root` to look in, in this order.

    Returns:
        By name; empty where no folder has them all.
    """
    wanted = list(names)
    for folder in folders:
        place = Path(root).expanduser() / folder
        found = {
            name: path
            for name in wanted
            for path in [place / name, *(place / f"{name}{ending}" for ending in _UNPACK)][::-1]
            if path.is_file()
        }
        if len(found) == len(wanted):
            return found
    return {}


def fetch(url: str, path: Path, checksum: str) -> None:
    """Download `url` to `path`, which is not there before all of it is and is what it should be.

    Args:
        url: http, https or file.
        path: Where to; its folders are made.
        checksum: ``"sha256:..."`` or ``"md5:..."``, hexadecimal.

    Raises:
        ValueError: It cannot be fetched, or is something else.
    """
    kind, _, expected = checksum.partition(":")
    content = hashlib.new(kind, usedforsecurity=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                content.update(chunk)
                file.write(chunk)
        if content.hexdigest() != expected:
            raise ValueError(
                f"{url}: has the {kind} {content.hexdigest()}, must be {expected}: damaged, or "
                "another file"
            )
        part.replace(path)
    except (OSError, urllib.error.URLError) as error:
        raise ValueError(f"{url}: could not be fetched: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def unpack(archive: Path, into: Path) -> None:
    """Unpack a zip or tar file into a new folder, which is not there before all of it is.

    Raises:
        ValueError: It is no such file or damaged, `into` is there already, or a member would lie
            outside of it, is a link that leads outside, or a device.
    """
    if into.exists():
        raise ValueError(f"{into}: is there already")
    into.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{into.name}-", dir=into.parent))
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, fresh)
        else:
            with tarfile.open(archive) as file:
                file.extractall(fresh, filter="data")
        fresh.chmod(0o755)
        fresh.replace(into)
    except (
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(f"{archive}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _unzip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            # zipfile would quietly put such a member elsewhere
            if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
                raise ValueError(f"{archive}: member {name!r} would lie outside the folder")
        file.extractall(into)


class _Arrays(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays; anything else could run code."""

    _allowed = {
        (module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in (
            (f"{package}.multiarray", "_reconstruct"),
            (f"{package}.multiarray", "scalar"),
            (f"{package}.numeric", "_frombuffer"),
        )
    } | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is not data")
        return super().find_class(module, name)


def read_pickle(path: Path) -> Any:
    """Return what a pickle of plain values and NumPy arrays holds; strings of Python 2 as bytes.

    Raises:
        ValueError: It is damaged, or asks for anything that is not data.
    """
    try:
        return _Arrays(io.BytesIO(read_bytes(path)), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path}: is no pickle of arrays: {error}") from error
