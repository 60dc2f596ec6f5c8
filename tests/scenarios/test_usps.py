import bz2
import hashlib
from pathlib import Path

import numpy as np
import pytest
from building import built
from numpy.typing import NDArray

from scenarios.datasets import usps as module
from scenarios.datasets.usps import usps


def line(label: int, values: NDArray[np.float64]) -> str:
    pairs = (f"{index}:{value:.7g}" for index, value in enumerate(values, 1))
    return " ".join([str(label), *pairs]) + " \n"


def contents() -> dict[str, list[str]]:
    """Twenty training and ten test images in LIBSVM's format."""
    rng = np.random.default_rng(0)
    return {
        name: [line(row % 10 + 1, rng.uniform(-1, 1, 256)) for row in range(size)]
        for name, size in (("usps", 20), ("usps.t", 10))
    }


def write(folder: Path, files: dict[str, list[str]], *, packed: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        content = "".join(lines).encode()
        if packed:
            (folder / f"{name}.bz2").write_bytes(bz2.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", ["USPS", "."])
def test_files_are_read_as_torchvision_reads_them(place: str, tmp_path: Path) -> None:
    from torchvision.datasets import USPS

    folder = write(tmp_path / place, contents())
    data = usps(str(tmp_path))
    assert data.train.x.shape == (20, 1, 16, 16)
    for train, samples in ((True, data.train), (False, data.test)):
        theirs = USPS(str(folder), train=train)
        assert np.array_equal(samples.x[:, 0], theirs.data)
        assert samples.y.tolist() == theirs.targets
    write(tmp_path / "plain", contents(), packed=False)
    assert usps(str(tmp_path / "plain")).digest == data.digest


def test_paper_is_0_ink_255_and_rows_are_rows(tmp_path: Path) -> None:
    files, values = contents(), np.full(256, -1.0)
    values[16:32] = 1.0
    values[255] = 0.0
    files["usps.t"][0] = line(1, values)
    image = usps(str(write(tmp_path, files))).test.x[0, 0]
    assert (image[1] == 255).all()
    assert (image[0] == 0).all()
    assert image[15, 15] == 127


def test_padding_makes_images_of_mnists_size_and_changes_the_digest(tmp_path: Path) -> None:
    root = str(write(tmp_path, contents()))
    plain, padded = usps(root), usps(root, padding=6)
    assert np.array_equal(padded.train.x[:, :, 6:-6, 6:-6], plain.train.x)
    assert padded.train.x.shape == (20, 1, 28, 28)
    assert int(padded.train.x[:, :, :6].max()) == 0
    assert len({each.digest for each in (plain, padded, usps(root, mean=0.2))}) == 3


LINE = contents()["usps"][3]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("\n", "is no label and index:value pairs"),
        (LINE.replace("4 ", "four ", 1), "is no label and index:value pairs"),
        (LINE.replace("4 ", f"{10**30} ", 1), "is no label and index:value pairs"),
        (LINE.replace(" 7:", " 7=", 1), "is no label and index:value pairs"),
        (LINE.replace(" 7:", " 7:x", 1), "is no label and index:value pairs"),
        (LINE.replace(" 7:", " 7:1:", 1), "is no label and index:value pairs"),
        (LINE.replace(":", " "), "must have values of 1 to 256, in this order"),
        (LINE.replace(" 7:", " 8:", 1), "must have values of 1 to 256, in this order"),
        (LINE[:-20] + "\n", "must have values of 1 to 256, in this order"),
        ("4\n", "must have values of 1 to 256, in this order"),
        (LINE[:-1] + " 257:0\n", "must have values of 1 to 256, in this order"),
        (line(4, np.full(256, -1e300)), r"has a value that is not in \[-1, 1\]"),
        (line(4, np.full(256, 1.5)), r"has a value that is not in \[-1, 1\]"),
        (line(4, np.full(256, np.nan)), r"has a value that is not in \[-1, 1\]"),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_row(wrong: str, message: str, tmp_path: Path) -> None:
    files = contents()
    files["usps"][3] = wrong
    path = write(tmp_path, files) / "usps.bz2"
    with pytest.raises(ValueError, match=f"^{path}: row 3 {message}$"):
        usps(str(tmp_path))


@pytest.mark.parametrize("label", [0, 11, -3])
def test_a_wrong_label_is_refused_by_file_and_row(label: int, tmp_path: Path) -> None:
    files = contents()
    files["usps.t"][9] = line(label, np.zeros(256))
    path = write(tmp_path, files) / "usps.t.bz2"
    with pytest.raises(ValueError, match=f"^{path}: label {label} in row 9, must be in 1..10$"):
        usps(str(tmp_path))


def test_damaged_and_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, contents()) / "usps.t.bz2"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"^{path}: cannot be read"):
        usps(str(tmp_path))
    path.write_bytes(bz2.compress(b""))
    with pytest.raises(ValueError, match=r"^dataset usps: test samples"):
        usps(str(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=r"^dataset.root=.*usps.t.*dataset.download=true$"):
        usps(str(tmp_path))


def test_a_download_fetches_checks_and_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, root = write(tmp_path / "mirror", contents()), tmp_path / "root"
    monkeypatch.setattr(module, "MIRRORS", (f"{mirror.as_uri()}/",))
    with pytest.raises(ValueError, match=r"^dataset.download=true: USPS could not .* has the md5"):
        usps(str(root), download=True)
    sums = {
        path.name: f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}" for path in mirror.iterdir()
    }
    monkeypatch.setattr(module, "CHECKSUMS", sums)
    assert usps(str(root), download=True).digest == usps(str(mirror)).digest


def test_downloads_are_torchvisions() -> None:
    from torchvision.datasets import USPS

    for url, name, md5 in USPS.split_list.values():
        assert url == f"{module.MIRRORS[0]}{name}"
        assert module.CHECKSUMS[name] == f"md5:{md5}"


def test_the_choice_builds_on_its_files(tmp_path: Path) -> None:
    write(tmp_path, contents())
    assert built(tmp_path, "dataset=usps").scenario.input_shape == (1, 16, 16)
