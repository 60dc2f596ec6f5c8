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


PERMUTED = "scenario=permuted_digits"


def accuracy(*overrides: str) -> float:
    """Return the final average accuracy in percent, mean over seeds 0-2."""
    return measured(*overrides)["average_accuracy"]


def forgetting(*overrides: str) -> float:
    """Return the forgetting in percent, mean over seeds 0-2."""
    return measured(*overrides)["forgetting"]


@cache
def measured(*overrides: str) -> dict[str, float]:
    """Return both in percent, means over seeds 0-2."""
    finals: dict[str, list[float]] = {"average_accuracy": [], "forgetting": []}
    for seed in range(3):
        with TemporaryDirectory() as out:
            arguments = ["experiment=digits_bands", "tracker=none", f"out={out}", f"seed={seed}"]
            assert main(["run", *arguments, *overrides]) == 0
            (summary,) = Path(out).rglob("summary.json")
            measures = json.loads(summary.read_text())["cl"]
            for name, values in finals.items():
                values.append(100 * measures[name])
    return {name: mean(values) for name, values in finals.items()}


@pytest.mark.parametrize("continual", ["naive", "ewc", "lwf"])
def test_without_a_memory_class_incremental_learning_keeps_the_last_experience_only(continual):
    clipped = ("local.max_grad_norm=1",) if continual == "ewc" else ()
    assert accuracy(f"continual={continual}", *clipped) == pytest.approx(20, abs=2)


def test_twenty_samples_a_client_lift_class_incremental_learning_by_sixty_points():
    replay = accuracy("continual=replay", "continual.memory_per_client=20")
    assert replay - accuracy("continual=naive") >= 60


def test_twenty_samples_a_client_lift_permuted_digits_by_ten_points():
    replay = accuracy(PERMUTED, "continual=replay", "continual.memory_per_client=20")
    assert replay - accuracy(PERMUTED, "continual=naive") >= 10


def test_masking_the_loss_moves_naive_to_about_half():
    assert 45 <= accuracy("continual=naive", "head.mask=true") <= 60


@pytest.mark.parametrize("continual", ["replay", "der_plus_plus", "er_ace", "er_aml", "scr", "mer"])
def test_the_best_memories_reach_eighty_percent(continual):
    assert accuracy(f"continual={continual}", "continual.memory_per_client=20") >= 80


def test_agem_is_between_naive_and_replay():
    replay = accuracy("continual=replay", "continual.memory_per_client=20")
    assert accuracy("continual=naive") + 5 < accuracy("continual=agem") < replay - 5


@pytest.mark.parametrize("continual", ["ewc", "ewc_online", "mas"])
@pytest.mark.parametrize("engine", ["avalanche", "functional"])
def test_springs_halve_what_permuted_digits_lose(continual, engine):
    settings = (f"continual={continual}", f"engine={engine}", "local.max_grad_norm=1")
    assert forgetting(PERMUTED, *settings) <= forgetting(PERMUTED, "continual=naive") / 2


@pytest.mark.parametrize("continual", ["replay", "der_plus_plus", "agem"])
def test_memories_help_permuted_digits(continual):
    assert accuracy(PERMUTED, f"continual={continual}") > accuracy(PERMUTED, "continual=naive") + 5
