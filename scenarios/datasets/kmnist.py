"""Kuzushiji-MNIST from its four IDX files: 60 000 + 10 000 cursive Japanese characters, 28x28."""

from scenarios.dataset import Dataset
from scenarios.datasets.idx_images import Source, idx_images
from scenarios.datasets.pixels import Numbers, Preprocessing

SOURCE = Source(
    name="kmnist",
    title="KMNIST",
    folder="KMNIST",
    # mirror and digests: torchvision 0.29, torchvision.datasets.KMNIST
    mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    checksums={
        "train-images-idx3-ubyte.gz": "md5:bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "md5:e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "md5:5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "md5:7320c461ea6c1c855c0b718fb2a4b134",
    },
)


def kmnist(
    root: str = "data",
    download: bool = False,
    expected_digest: str | None = None,
    padding: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return Kuzushiji-MNIST (Clanuwat et al., arXiv:1812.01718).

    Args:
        root: Folder that holds the files, plain or ``.gz``: in ``KMNIST/raw``, ``raw`` or directly.
        download: Whether to fetch the files into ``root/KMNIST/raw`` if they are not there.
        expected_digest: Refuse other content than that of this digest; None accepts any.
        padding: Black pixels added on each side, from 0; 2 makes the images 32x32.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        See `idx_images`. Labels: the hiragana o, ki, su, tsu, na, ha, ma, ya, re, wo.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    preprocessing = Preprocessing(1, mean, std, padding)
    return idx_images(SOURCE, root, download, expected_digest, preprocessing)
