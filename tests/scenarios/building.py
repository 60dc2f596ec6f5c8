"""Experiments on small files, for tests of the choices under conf/dataset/ and conf/scenario/."""

from pathlib import Path

from fedlearn.config.composition import compose
from fedlearn.config.experiment import Experiment, build, prepare


def built(root: Path, *overrides: str) -> Experiment:
    """Build an experiment of two clients on the data in `root`."""
    few = ("num_clients=2", "partition=iid", "continual=naive", "tracker=none")
    return build(prepare(compose([*few, f"dataset.root={root}", *overrides])))
