"""A turn that is cut short takes its share of a whole one's steps, whatever its epochs read."""

import math
from typing import Any

import pytest
import torch
from lone_client import (
    STRATEGIES,
    TWINS,
    built,
    gap,
    live,
    mlp,
    model_for,
    stream_for,
    training_for,
)
from twins import FUNCTIONAL

CASES = [("avalanche", name) for name in STRATEGIES] + [("functional", name) for name in TWINS]


def _strategy(engine: str, name: str) -> Any:
    return built(name) if engine == "avalanche" else FUNCTIONAL[name](training=training_for(name))


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_a_part_of_a_turn_is_that_part_of_its_steps(engine: str, name: str) -> None:
    """Streams of 70 samples in batches of 16: 5 steps an epoch of what is new, 10 a turn."""
    strategy, stream = _strategy(engine, name), stream_for(name)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16}
    whole, half, least = (
        [each.steps for each in live(strategy, model, stream, **settings, work=work)]
        for work in (1.0, 0.55, 1e-9)
        for model in [model_for(strategy) if engine == "avalanche" else mlp()]
    )
    assert half == [math.ceil(0.55 * steps) for steps in whole]
    assert least == [1, 1, 1]


@pytest.mark.parametrize(("engine", "name"), [("avalanche", "replay"), ("functional", "replay")])
def test_it_is_the_first_part_and_of_fixed_steps_likewise(engine: str, name: str) -> None:
    strategy, stream = _strategy(engine, name), stream_for(name, 1)
    by_work, of_fixed, by_steps = mlp(), mlp(), mlp()
    live(strategy, by_work, stream, epochs=2, work=0.5)  # of 6
    live(strategy, of_fixed, stream, steps=9, work=0.3)
    live(strategy, by_steps, stream, steps=3)
    assert gap(by_work, by_steps) == gap(of_fixed, by_steps) == 0.0
    live(strategy, mlp(), stream, epochs=2)
    assert not torch.equal(by_work[0].weight, mlp()[0].weight)
