"""A user's own text files as windows of characters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scenarios.datasets.text import text

VERSE = "abcabcabd\ncabbac é"  # the last 4 of 18 characters are to test on
PROSE = "bad cab dab"  # and the last 2 of these 11


def write(folder: Path, **files: str) -> str:
    for name, content in files.items():
        (folder / f"{name}.txt").write_bytes(content.encode())
    return str(folder)


def spelled(tokens: torch.Tensor, alphabet: str) -> str:
    return "".join((alphabet + "?")[token] for token in tokens)


def test_windows_stay_in_their_file_and_on_their_side(tmp_path: Path) -> None:
    path = write(tmp_path, verse=VERSE, prose=PROSE)
    data = text(path, length=1, stride=1, test_fraction=0.2)
    alphabet = "\n abcd"
    windows = [
        spelled(torch.cat([x, y[None]]), alphabet)
        for samples in (data.train, data.test)
        for x, y in zip(samples.x, samples.y, strict=True)
    ]
    learned = [("bad cab d", "ab"), ("abcabcabd\ncabb", "ac ?")]  # é is in no training text
    expected = [
        each[side][i : i + 2]
        for side in (0, 1)
        for each in learned
        for i in range(len(each[side]) - 1)
    ]
    assert windows == expected
    assert data.num_classes == len(alphabet) + 1
    train, test = data.tags["author"]
    assert train.tolist() == [0] * 8 + [1] * 13
    assert test.tolist() == [0] + [1] * 3
    assert (data.train.x.dtype, data.input_shape) == (torch.int64, (1,))


@pytest.mark.parametrize(("length", "stride"), [(3, 1), (3, 2), (4, 5), (8, 100)])
def test_windows_start_every_stride(tmp_path: Path, length: int, stride: int) -> None:
    path = write(tmp_path, verse="abcdefghijklmnopqrstuvwxyz" * 2)
    data = text(path, length=length, stride=stride, test_fraction=0.5)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    for samples in (data.train, data.test):
        starts = range(0, 26 - length, stride)
        assert [spelled(x, alphabet) for x in samples.x] == [alphabet[i:][:length] for i in starts]
        assert spelled(samples.y, alphabet) == "".join(alphabet[i + length] for i in starts)


def test_a_file_by_itself_line_ends_and_marks_do_not_matter(tmp_path: Path) -> None:
    plain = write(tmp_path, verse=VERSE)
    settings: dict[str, Any] = {"length": 1, "stride": 1, "test_fraction": 0.2}
    expected = text(plain, **settings).digest
    assert text(f"{plain}/verse.txt", **settings).digest == expected
    (tmp_path / "other").mkdir()
    marked = write(tmp_path / "other", name="\ufeff" + VERSE.replace("\n", "\r\n"))
    assert text(marked, **settings).digest == expected


@pytest.mark.parametrize(
    "change", [{"length": 2}, {"stride": 2}, {"test_fraction": 0.3}, {"content": VERSE + "!"}]
)
def test_the_digest_follows_the_text_and_the_settings(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"length": 1, "stride": 1, "test_fraction": 0.2}
    path = write(tmp_path, verse=VERSE)
    plain = text(path, **settings).digest
    write(tmp_path, verse=change.pop("content", VERSE))
    assert text(path, **{**settings, **change}).digest != plain


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"length": 0}, "^dataset.length=0: must be at least 1"),
        ({"stride": 0}, "^dataset.stride=0: must be at least 1"),
        ({"test_fraction": 0.0}, "^dataset.test_fraction=0.0: must be greater than 0"),
        ({"test_fraction": 1.0}, "^dataset.test_fraction=1.0: must be greater than 0"),
        ({"path": None}, "^dataset.path=null: name a text file"),
        ({"path": "/nowhere.txt"}, "^/nowhere.txt: cannot be read"),
        ({"length": 14}, "verse.txt: has 14 characters to train on, must be at least .* = 15"),
        ({"length": 4}, "verse.txt: has 4 characters to test on, must be at least .* = 5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    path = write(tmp_path, verse=VERSE)
    with pytest.raises(ValueError, match=complaint) as caught:
        text(**{"path": path, "length": 1, "test_fraction": 0.2, **settings})
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset.path=.*: holds no .txt files"):
        text(str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"ab\xff" * 100)
    with pytest.raises(ValueError, match=r"a.txt: is no text in UTF-8"):
        text(str(tmp_path))
