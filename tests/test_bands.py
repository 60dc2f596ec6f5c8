"""Acceptance bands: the numbers that a correct implementation must reach on real handwriting.

5 clients, Dirichlet 0.5, 5 experiences x 10 rounds x 2 epochs, MLP 64-100-10, SGD 0.1; means over
seeds 0-2.
"""

import json
from functools import cache
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import pytest

from fedlearn.cli import main

pytestmark = pytest.mark.slow


@cache
def accuracy(*overrides: str) -> float:
    """Return the final average accuracy in percent, mean over seeds 0-2."""
    finals = []
    for seed in range(3):
        with TemporaryDirectory() as out:
            arguments = ["experiment=digits_bands", "tracker=none", f"out={out}", f"seed={seed}"]
            assert main(["run", *arguments, *overrides]) == 0
            (summary,) = Path(out).rglob("summary.json")
            finals.append(100 * json.loads(summary.read_text())["cl"]["average_accuracy"])
    return mean(finals)


@pytest.mark.parametrize("continual", ["naive", "ewc", "lwf"])
def test_without_a_memory_class_incremental_learning_keeps_the_last_experience_only(continual):
    clipped = ("local.max_grad_norm=1",) if continual == "ewc" else ()
    assert accuracy(f"continual={continual}", *clipped) == pytest.approx(20, abs=2)


def test_twenty_samples_a_client_lift_class_incremental_learning_by_sixty_points():
    replay = accuracy("continual=replay", "continual.memory_per_client=20")
    assert replay - accuracy("continual=naive") >= 60


def test_twenty_samples_a_client_lift_permuted_digits_by_ten_points():
    permuted = "scenario=permuted_digits"
    replay = accuracy(permuted, "continual=replay", "continual.memory_per_client=20")
    assert replay - accuracy(permuted, "continual=naive") >= 10


def test_masking_the_loss_moves_naive_to_about_half():
    assert 45 <= accuracy("continual=naive", "head.mask=true") <= 60
