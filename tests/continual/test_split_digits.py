"""The strategies' well-known order on Split-Digits and Permuted-Digits: one client, no server."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from lone_client import DIGITS, STRATEGIES, TRAINING, accuracy, live, mlp

from fedlearn.types import Experience
from strategies.continual.avalanche.agem import agem
from strategies.continual.avalanche.der_plus_plus import der_plus_plus
from strategies.continual.avalanche.replay import replay
from strategies.continual.avalanche.si import si

MEMORY = {"replay": replay, "der_plus_plus": der_plus_plus, "agem": agem}


def streams(permuted: bool) -> tuple[list[Experience], list[Experience]]:
    """Return the streams to learn and to be tested on: four fifths and one fifth of the digits."""
    train, test = [], []
    for index in range(5):
        generator = torch.Generator().manual_seed(index)
        rows = torch.arange(len(DIGITS)) if permuted else (DIGITS.y // 2 == index).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
        transform, classes = None, (2 * index, 2 * index + 1)
        if permuted:
            pixels = torch.randperm(64, generator=generator)
            transform, classes = _Permutation(pixels), tuple(range(10))
        cut = len(rows) * 4 // 5
        for stream, part in ((train, rows[:cut]), (test, rows[cut:])):
            stream.append(Experience(index, DIGITS, part, classes, 0, transform))
    return train, test


class _Permutation:
    def __init__(self, pixels: torch.Tensor) -> None:
        self._pixels = pixels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self._pixels]


@cache
def final_accuracy(name: str, permuted: bool) -> float:
    """Return the accuracy over all experiences after the last: 10 epochs in each (3 permuted)."""
    train, test = streams(permuted)
    if name in MEMORY:
        strategy = MEMORY[name](training=TRAINING, memory_per_client=200)
    else:
        clipped = replace(TRAINING, max_grad_norm=1.0)  # or their penalties diverge in class-IL
        training = clipped if name in ("ewc", "ewc_online", "mas") else TRAINING
        strategy = STRATEGIES[name](training=training)
    model = mlp(hidden=100)
    live(strategy, model, train, rounds=1, epochs=3 if permuted else 10)
    return accuracy(model, test)


@pytest.mark.parametrize("name", ["naive", "ewc", "ewc_online", "si", "lwf", "mas"])
def test_class_incremental_without_memory_knows_the_last_experience_only(name: str) -> None:
    assert 0.17 < final_accuracy(name, permuted=False) < (0.35 if name == "mas" else 0.23)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("replay", 0.84, 0.95), ("der_plus_plus", 0.86, 0.97), ("agem", 0.25, 0.65)],
)
def test_class_incremental_with_memory(name: str, low: float, high: float) -> None:
    assert low < final_accuracy(name, permuted=False) < high


@pytest.mark.parametrize("name", ["si", "mas", "agem", "replay", "der_plus_plus"])
def test_domain_incremental_every_defence_beats_none(name: str) -> None:
    assert final_accuracy(name, permuted=True) > final_accuracy("naive", permuted=True) + 0.03


def test_si_with_upstreams_cap_does_next_to_nothing() -> None:
    """Why `max_importance` is null: at c = 1 the cap of 1e-3 leaves plain fine-tuning."""
    train, test = streams(permuted=True)
    reached = {}
    for cap in (None, 1e-3):
        model = mlp(hidden=100)
        live(si(training=TRAINING, max_importance=cap), model, train, epochs=3)
        reached[cap] = accuracy(model, test)
    assert abs(reached[1e-3] - final_accuracy("naive", permuted=True)) < 0.02
    assert reached[None] > reached[1e-3] + 0.05
