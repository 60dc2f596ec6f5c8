import hashlib
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import built

from scenarios.dataset import Dataset
from scenarios.datasets import cifar10 as cifar10_module
from scenarios.datasets import cifar100 as cifar100_module
from scenarios.datasets.cifar10 import cifar10
from scenarios.datasets.cifar100 import cifar100

Batch = dict[str, Any]


def python2_pickle(batch: Batch) -> bytes:
    """Pickle as Python 2.7 and NumPy 1 did, opcode by opcode as in the published files."""

    def text(content: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(content)) + content

    def value(held: Any) -> bytes:
        if isinstance(held, bytes):
            return text(held)
        if isinstance(held, int):
            return b"J" + struct.pack("<i", held)
        if isinstance(held, list):
            return b"](" + b"".join(map(value, held)) + b"e"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        shape = b"".join(map(value, held.shape))
        state = b"(K\x01" + shape + b"\x86" + dtype + b"J\xff\xff\xff\xffK\x00tb\x89"
        return made + state + text(held.tobytes()) + b"tb"

    pairs = b"".join(text(key.encode()) + value(held) for key, held in batch.items())
    return b"\x80\x02}(" + pairs + b"u."


def batches(source: Any, per_batch: int, num_classes: int = 10) -> dict[str, Batch]:
    rng = np.random.default_rng(num_classes)
    return {
        name: {
            "batch_label": b"made up",
            "data": rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8),
            **{
                key: ((np.arange(per_batch) + at) % (20 if key[0] == "c" else num_classes)).tolist()
                for key in source.labels
            },
            "filenames": [b"a.png"] * per_batch,
        }
        for at, name in enumerate(source.batches)
    }


TEN = batches(cifar10_module.SOURCE, 10)
HUNDRED = batches(cifar100_module.SOURCE, 100, 100)


def write(folder: Path, held: dict[str, Batch]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, batch in held.items():
        (folder / name).write_bytes(python2_pickle(batch))
    return folder


def write_binary(folder: Path, held: dict[str, Batch], keys: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, batch in held.items():
        records = [np.array(batch[key], np.uint8)[:, None] for key in keys]
        content = np.concatenate([*records, batch["data"]], axis=1).tobytes()
        (folder / f"{name}.bin").write_bytes(content)
    return folder


def test_what_is_written_here_is_what_python_2_wrote() -> None:
    read = pickle.loads(python2_pickle(TEN["test_batch"]), encoding="latin1")
    assert read["batch_label"] == "made up"
    assert np.array_equal(read["data"], TEN["test_batch"]["data"])
    assert read["labels"] == TEN["test_batch"]["labels"]


@pytest.mark.parametrize(
    ("load", "held", "known_as"), [(cifar10, TEN, "CIFAR10"), (cifar100, HUNDRED, "CIFAR100")]
)
def test_batches_are_read_as_torchvision_reads_them(
    load: Callable[..., Dataset],
    held: dict[str, Batch],
    known_as: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, known_as)
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(kind, "_load_meta", lambda self: None)
    write(tmp_path / kind.base_folder, held)
    data = load(str(tmp_path))
    for train, samples in ((True, data.train), (False, data.test)):
        theirs = kind(str(tmp_path), train=train)
        assert np.array_equal(samples.x.permute(0, 2, 3, 1), theirs.data)
        assert samples.y.tolist() == theirs.targets
    assert data.train.x.dtype == torch.uint8
    assert data.train.x.is_contiguous()


def test_pixels_are_red_then_green_then_blue_row_by_row(tmp_path: Path) -> None:
    image = cifar10(str(write(tmp_path, TEN))).train.x[23]
    pixels = TEN["data_batch_3"]["data"][3]
    assert image[0, 0, 1] == pixels[1]
    assert image[0, 1, 0] == pixels[32]
    assert image[2, 31, 30] == pixels[2 * 1024 + 31 * 32 + 30]


@pytest.mark.parametrize("place", ["", "cifar-10-batches-{}", "CIFAR-10/cifar-10-batches-{}"])
def test_pickled_and_binary_files_are_the_same_wherever_they_lie(
    place: str, tmp_path: Path
) -> None:
    write(tmp_path / "one" / place.format("py"), TEN)
    write_binary(tmp_path / "two" / place.format("bin"), TEN, ("labels",))
    one, two = (cifar10(str(tmp_path / root)) for root in ("one", "two"))
    assert one.digest == two.digest
    assert torch.equal(one.train.x, two.train.x)
    assert torch.equal(one.test.y, two.test.y)


def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path) -> None:
    root = str(write(tmp_path / "cifar-100-python", HUNDRED).parent)
    fine, coarse = cifar100(root), cifar100(root, labels="coarse")
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert coarse.test.y.tolist() == HUNDRED["test"]["coarse_labels"]
    assert torch.equal(fine.test.x, coarse.test.x)
    assert fine.digest != coarse.digest
    folder = tmp_path / "other" / "cifar-100-binary"
    other = str(write_binary(folder, HUNDRED, ("coarse_labels", "fine_labels")).parent)
    assert cifar100(other).digest == fine.digest
    assert cifar100(other, labels="coarse").digest == coarse.digest
    with pytest.raises(ValueError, match=r"^dataset.labels=all: must be one of fine, coarse$"):
        cifar100(root, labels="all")  # type: ignore[arg-type]


def test_mean_and_std_are_one_a_channel_and_change_the_digest(tmp_path: Path) -> None:
    root = str(write(tmp_path, TEN))
    plain = cifar10(root)
    rows = torch.arange(50)
    changed = cifar10(root, mean=[0.1, 0.2, 0.3], std=0.5)
    expected = (plain.train.inputs(rows) - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 0.5
    assert torch.allclose(changed.train.inputs(rows), expected, atol=1e-6)
    digests = {
        plain.digest,
        changed.digest,
        cifar10(root, mean=0.5).digest,
        cifar10(root, std=[0.1, 0.2, 0.3]).digest,
        cifar10(root, mean=[0.5, 0.5, 0.1], std=[0.2, 0.3, 0.4]).digest,
        cifar10(root, mean=0.5, std=0.1).digest,
    }
    assert len(digests) == 6
    assert cifar10(root, mean=[0, 0, 0], std=[1, 1, 1]).digest == plain.digest
    assert cifar10(root, mean=[0.5, 0.5, 0.5]).digest == cifar10(root, mean=0.5).digest
    with pytest.raises(ValueError, match=r"^dataset.std=\[1, 2\]: must be one number or 3, not 2$"):
        cifar10("/nowhere", std=[1, 2])


def test_the_digest_changes_with_a_pixel_and_with_a_label(tmp_path: Path) -> None:
    digests = {cifar10(str(write(tmp_path, TEN))).digest}
    labels = TEN["test_batch"]["labels"][::-1]
    pixels = TEN["test_batch"]["data"].copy()
    pixels[9, 3071] ^= 1
    for change in ({"labels": labels}, {"data": pixels}):
        write(tmp_path, {"test_batch": {**TEN["test_batch"], **change}})
        digests.add(cifar10(str(tmp_path)).digest)
    assert len(digests) == 3


GOOD = TEN["data_batch_2"]
PICKLED = python2_pickle(GOOD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PICKLED[:-1000], "is no pickle of arrays"),
        (b"", "is no pickle of arrays"),
        (pickle.dumps(print), "it wants builtins.print, which is not data"),
        (pickle.dumps([1]), r"must hold 'data', \(n, 3072\) bytes$"),
        (python2_pickle({"labels": [1]}), r"must hold 'data', \(n, 3072\) bytes"),
        (python2_pickle({**GOOD, "data": GOOD["data"][:, 1:]}), r"must hold 'data', \(n, 3072\)"),
        (pickle.dumps({b"data": GOOD["data"].astype(float)}), r"must hold 'data', \(n, 3072\)"),
        (pickle.dumps({b"data": [1]}), r"must hold 'data', \(n, 3072\)"),
        (python2_pickle({"data": GOOD["data"]}), "must hold 'labels', a list of whole numbers$"),
        (python2_pickle({**GOOD, "labels": [b"a"] * 10}), "must hold 'labels', a list of whole"),
        (python2_pickle({**GOOD, "labels": [1] * 9}), "9 labels, but 10 images$"),
        (python2_pickle({**GOOD, "labels": [1] * 9 + [10]}), "label 10 in row 9, must be in 0..9$"),
        (python2_pickle({**GOOD, "labels": [-1] * 10}), "label -1 in row 0, must be in 0..9$"),
        (pickle.dumps({b"data": GOOD["data"], b"labels": [2**70] * 10}), "in row 0, must be in"),
    ],
)
def test_a_damaged_batch_is_refused_by_name_in_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, TEN) / "data_batch_2"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        cifar10(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [1, 30730])
def test_a_binary_batch_that_ends_within_a_record_is_refused(cut: int, tmp_path: Path) -> None:
    path = write_binary(tmp_path, TEN, ("labels",)) / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    complaint = f"^{path}: holds {30730 - cut} bytes, must be records of 3073 bytes each$"
    with pytest.raises(ValueError, match=complaint):
        cifar10(str(tmp_path))


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    (write(tmp_path / "cifar-10-batches-py", TEN) / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"^dataset.root=.*data_batch_4.*download=true$") as caught:
        cifar10(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_download_is_unpacked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "cifar-100-python", HUNDRED)
    archive = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)
    wrong = replace(cifar100_module.SOURCE, url=archive.as_uri())
    monkeypatch.setattr(cifar100_module, "SOURCE", wrong)
    root = tmp_path / "root"
    with pytest.raises(ValueError, match=r"^dataset.download=true: CIFAR-100 could .* has the md5"):
        cifar100(str(root), download=True)
    assert not list(root.iterdir())

    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar100_module, "SOURCE", replace(wrong, checksum=f"md5:{md5}"))
    data = cifar100(str(root), download=True)
    assert data.digest == cifar100(str(tmp_path)).digest
    assert [path.name for path in root.iterdir()] == ["CIFAR-100"]  # not the archive
    archive.unlink()
    assert cifar100(str(root), download=True).digest == data.digest  # nothing to fetch


@pytest.mark.parametrize(
    ("source", "known_as"),
    [(cifar10_module.SOURCE, "CIFAR10"), (cifar100_module.SOURCE, "CIFAR100")],
)
def test_files_and_download_are_torchvisions(source: Any, known_as: str) -> None:
    import torchvision.datasets

    theirs = getattr(torchvision.datasets, known_as)
    assert (source.url, source.checksum) == (theirs.url, f"md5:{theirs.tgz_md5}")
    assert source.pickled == theirs.base_folder
    assert list(source.batches) == [name for name, _ in theirs.train_list + theirs.test_list]


def test_split_cifar_is_5_times_2_and_10_times_10_classes(tmp_path: Path) -> None:
    write(tmp_path / "cifar-10-batches-py", TEN)
    write(tmp_path / "cifar-100-python", HUNDRED)
    for name, experiences, each in (("cifar10", 5, 2), ("cifar100", 10, 10)):
        scenario = built(tmp_path, f"scenario=split_{name}").scenario
        assert [len(classes) for classes in scenario.classes] == [each] * experiences
        assert scenario.input_shape == (3, 32, 32)
    normalised = "dataset.mean=[0.4914,0.4822,0.4465]", "dataset.std=[0.2470,0.2435,0.2616]"
    train = built(tmp_path, "dataset=cifar10", *normalised).scenario.train
    assert (train.mean, train.std) == ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
