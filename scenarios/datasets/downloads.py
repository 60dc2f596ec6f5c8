"""Downloads of data sets' standard files, as ``dataset.download=true`` asks for them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from scenarios.files import fetch, unpack


def fetch_files(
    title: str, folder: Path, checksums: Mapping[str, str], mirrors: Sequence[str]
) -> None:
    """Fetch the files that are not in `folder` yet, each from the first mirror that has it.

    Args:
        title: What the data set is called.
        folder: Where the files go.
        checksums: By file name, ``"md5:..."`` or ``"sha256:..."``.
        mirrors: Addresses that the file names are added to, tried in this order.

    Raises:
        ValueError: No mirror has one of the files, or what they have is something else.
    """
    with _asked_for(title, folder):
        for name, checksum in checksums.items():
            if not (folder / name).is_file():
                _fetch_first([f"{mirror}{name}" for mirror in mirrors], folder / name, checksum)


def fetch_archive(title: str, url: str, checksum: str, into: Path) -> None:
    """Fetch an archive and unpack it into the new folder `into`; the archive is not kept.

    Raises:
        ValueError: `into` is there already, or the archive cannot be fetched or unpacked.
    """
    archive = into.with_name(f".{into.name}.archive")
    with _asked_for(title, into):
        if into.exists():  # which fetching first would find out late
            raise ValueError(f"{into} is there already")
        try:
            fetch(url, archive, checksum)
            unpack(archive, into)
        finally:
            archive.unlink(missing_ok=True)


def _fetch_first(urls: Sequence[str], path: Path, checksum: str) -> None:
    failures = []
    for url in urls:
        try:
            return fetch(url, path, checksum)
        except (ValueError, HTTPException) as error:
            failures.append(str(error))
    raise ValueError("; ".join(failures))


@contextmanager
def _asked_for(title: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"dataset.download=true: {title} could not be fetched into {folder}: {reason}; "
            "put its files there and set dataset.download=false"
        ) from error
