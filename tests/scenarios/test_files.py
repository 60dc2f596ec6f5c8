"""Files of data sets: what is refused, and that nothing is left behind."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from scenarios.files import fetch, find, read_bytes, read_pickle, unpack


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
def test_packed_files_read_as_what_they_hold(tmp_path: Path, ending: str) -> None:
    import bz2
    import lzma

    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending]
    path = tmp_path / f"file{ending}"
    path.write_bytes(pack(b"content" * 1000))
    assert read_bytes(path) == b"content" * 1000
    if ending:
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=f"file{ending}: cannot be read: "):
            read_bytes(path)


def test_a_set_of_files_comes_from_one_folder(tmp_path: Path) -> None:
    for name in ("a", "deep/a", "deep/b.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find(str(tmp_path), ["a", "b"], [".", "deep"])
    assert found == {"a": tmp_path / "deep" / "a", "b": tmp_path / "deep" / "b.gz"}
    assert find(str(tmp_path), ["a", "c"], [".", "deep"]) == {}


def test_a_download_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"content")
    with pytest.raises(ValueError, match=r"has the sha256 .* must be 00: damaged"):
        fetch(source.as_uri(), target, "sha256:00")
    with pytest.raises(ValueError, match="could not be fetched"):
        fetch((tmp_path / "missing").as_uri(), target, "sha256:00")
    assert not list(target.parent.iterdir())
    fetch(source.as_uri(), target, f"md5:{hashlib.md5(b'content').hexdigest()}")
    assert target.read_bytes() == b"content"
    assert len(list(target.parent.iterdir())) == 1


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, content in members:
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def _link(target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_archives_are_unpacked(tmp_path: Path) -> None:
    tar = _tar(tmp_path / "a.tgz", (tarfile.TarInfo("deep/file"), b"content"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("deep/file", b"content")
    for place, archive in (("one", tar), ("two", tmp_path / "a.zip")):
        unpack(archive, tmp_path / "new" / place)
        assert (tmp_path / "new" / place / "deep" / "file").read_bytes() == b"content"
    with pytest.raises(ValueError, match="one: is there already"):
        unpack(tar, tmp_path / "new" / "one")


@pytest.mark.parametrize("member", ["../evil", "/evil", "deep/../../evil"])
def test_an_archive_cannot_write_outside(tmp_path: Path, member: str) -> None:
    tar = _tar(tmp_path / "a.tar.gz", (tarfile.TarInfo(member), b"x"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(member, b"x")
    place = tmp_path / "in" / "place"
    if member != "/evil":  # tar files: an absolute name is taken as one inside, as tar does
        with pytest.raises(ValueError, match=r"a.tar.gz: cannot be unpacked: .*outside"):
            unpack(tar, place)
    with pytest.raises(ValueError, match=r"a.zip: member .* would lie outside the folder"):
        unpack(tmp_path / "a.zip", place)
    assert not place.exists()
    assert not list(tmp_path.rglob("evil"))
    assert not list((tmp_path / "in").iterdir())


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_an_archive_cannot_link_outside(tmp_path: Path, target: str) -> None:
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(_tar(tmp_path / "a.tar", (_link(target), b"")), tmp_path / "in")


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    whole = _tar(tmp_path / "a.tgz", (tarfile.TarInfo("f"), os.urandom(10_000))).read_bytes()
    for content in (whole[:5000], b"no archive at all"):
        (tmp_path / "b.tgz").write_bytes(content)
        with pytest.raises(ValueError, match=r"b.tgz: cannot be unpacked"):
            unpack(tmp_path / "b.tgz", tmp_path / "in" / "place")
        assert not list((tmp_path / "in").iterdir())


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch evil",)


def test_a_pickle_of_arrays_is_read_and_nothing_is_run(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    held = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], b"n": None}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(held, protocol))
        read = read_pickle(path)
        assert read.keys() == held.keys()
        assert np.array_equal(read[b"data"], held[b"data"])
        path.write_bytes(pickle.dumps({"x": Evil()}, protocol))
        with pytest.raises(ValueError, match=r"batch: is no pickle of arrays: it wants posix.sys"):
            read_pickle(path)
    path.write_bytes(pickle.dumps(held)[:20])
    with pytest.raises(ValueError, match="batch: is no pickle of arrays"):
        read_pickle(path)
