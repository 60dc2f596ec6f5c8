"""How a turn's samples are cut into batches, also where batch normalisation objects."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lone_client import STRATEGIES, TRAINING, mlp, split, turn_at

from fedlearn.types import State
from strategies.continual.batches import batch_sizes


@given(st.integers(1, 200), st.integers(1, 40), st.booleans())
def test_batches_add_up_and_their_number_does_not_depend_on_the_model(size, batch_size, avoid_one):
    sizes = batch_sizes(size, batch_size, avoid_one)
    assert sum(sizes) == size
    assert len(sizes) == -(-size // batch_size)
    assert max(sizes) <= batch_size
    if avoid_one and batch_size > 2 and size > 1:
        assert min(sizes) > 1
    if not avoid_one:
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


@pytest.mark.parametrize("name", ["naive", "replay", "ewc", "der_plus_plus"])
@pytest.mark.parametrize("size", [1, 2, 8, 9, 17])
def test_batch_normalisation_trains_on_any_number_of_samples(name: str, size: int) -> None:
    experience = split()[0]
    few = replace(experience, rows=experience.rows[:size])
    model = mlp(norm=True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = STRATEGIES[name](training=TRAINING).train_turn(
        model, few, [few].__getitem__, turn_at(0, batch_size=8), State()
    )
    assert report.steps == -(-size // 8)
    after = model.state_dict()
    assert all(tensor.isfinite().all() for tensor in after.values())
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert any(key.endswith("weight") for key in moved)
    assert any("running_mean" in key for key in moved) == (size > 1)


def test_other_models_keep_their_last_batch_of_one() -> None:
    experience = split()[0]
    few = replace(experience, rows=experience.rows[:9])
    strategy = STRATEGIES["naive"](training=TRAINING)
    for batch_size, steps in ((8, 2), (9, 1)):
        turn = turn_at(0, batch_size=batch_size)
        assert strategy.train_turn(mlp(), few, [few].__getitem__, turn, State()).steps == steps
