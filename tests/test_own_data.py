"""The README's commands for a user's own data, on data of a user's own."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedlearn.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
SMALL = ("tracker=none", "num_clients=2", "rounds_per_experience=1", "local.epochs=1")


def command(dataset: str) -> list[str]:
    """Return the README's command for a dataset, without the program's name."""
    found = re.search(rf"^fedlearn (run dataset={dataset} .*)$", README, re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog", "emu", "fox", "gnu")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 50, (40, 36, 3)) + 50 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def table(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "patients.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["age", "smokes", "hospital", "outcome"])
        for number in range(80):
            age = int(rng.integers(20, 90))
            ill = "ill" if age + rng.normal(0, 5) > 55 else "well"
            rows.writerow([age, rng.choice(["yes", "no"]), f"h{number % 4}", ill])


def arrays(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    y = np.arange(100) % 10
    x = (rng.normal(size=(100, 6)) + y[:, None]).astype(np.float32)
    parts = {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]}
    np.savez(folder / "mine.npz", **parts)


@pytest.mark.parametrize(
    ("dataset", "make", "clients"),
    [("image_folder", images, 2), ("table", table, 4), ("arrays", arrays, 2)],
    ids=["a folder of images", "a table", "arrays"],
)
def test_the_command_of_the_readme_trains_on_it(dataset, make, clients, tmp_path: Path) -> None:
    make(tmp_path / "own")
    arguments = [each.replace("DIR", str(tmp_path / "own")) for each in command(dataset)]
    out = f"out={tmp_path / 'runs'}"
    assert main([*arguments, *SMALL, f"num_clients={clients}", out]) == 0
    (path,) = (tmp_path / "runs").rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["status"] == "completed"
    assert summary["cl"]["average_accuracy"] is not None
