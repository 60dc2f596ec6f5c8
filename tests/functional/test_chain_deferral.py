"""Deferred updates against the chain that changes its weights at every step."""

from typing import Any

import pytest
import torch
from cohorts import Clock, scenario, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lone_client import TRAINING, mlp
from torch import Tensor, nn
from twins import FUNCTIONAL

from fedlearn.deferred import Deferred
from fedlearn.models.mlp import MLP
from fedlearn.seeding import borrowed_global_rng
from strategies.continual.functional.chain import Chain
from strategies.continual.functional.chain_deferral import Deferral, can_defer, fitting, pays

CPU = torch.device("cpu")


def chain_of(model: nn.Module) -> Chain:
    chain = Chain.of(model)
    assert isinstance(chain, Chain), chain
    return chain


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).norm()) <= 1e-11 * max(1.0, float(theirs.norm()))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=5),
    st.integers(0, 2**20),
    st.data(),
)
def test_steps_that_are_remembered_are_the_steps_that_are_taken(
    layers: list[tuple[int, bool]],
    steps: list[tuple[int, int]],
    seed: int,
    data: st.DataObject,
) -> None:
    """Of any layers, any part of them trained, with ever fewer clients and any sizes of batches."""
    width, modules = 6, list[nn.Module]()
    with borrowed_global_rng(seed):
        for size, bias in layers:
            modules += [nn.Linear(width, size, bias=bias), nn.Tanh()]
            width = size
        model = nn.Sequential(*modules).double()
    parameters = list(model.parameters())
    for parameter in parameters[1:]:
        parameter.requires_grad_(data.draw(st.booleans()))
    trained = any(parameter.requires_grad for parameter in parameters[1:])
    parameters[0].requires_grad_(not trained or data.draw(st.booleans()))
    chain, received = chain_of(model), tensors_of(model)[0]
    assert can_defer(chain)
    steps = sorted(steps, reverse=True)
    clients, rows, rate = steps[0][0], sum(batch for _, batch in steps), 0.3
    stacked = {name: each.repeat(clients, *[1] * each.dim()) for name, each in received.items()}
    deferral = Deferral(chain, received, clients, rows, rate, {})
    before = {name: each.clone() for name, each in received.items()}
    for at, (count, batch) in enumerate(steps):
        x, slope = drawn(seed + at, count, batch, 6), drawn(seed - at, count, batch, width)
        own = {name: each[:count] for name, each in stacked.items()}
        theirs, tape = chain.forward(own, x)
        chain.descend(own, tape, slope, rate)
        ours, tape = deferral.chain.forward({}, x)
        assert_close(ours, theirs)
        deferral.chain.descend({}, tape, slope, rate)
    results = deferral.results()
    assert set(results) == set(chain.trained)
    for name, each in results.items():
        assert_close(each.stack(), stacked[name])
    assert all(torch.equal(received[name], each) for name, each in before.items())


def test_what_room_held_before_does_not_matter() -> None:
    """Not even where clients finish early: nothing times something that is no number is none."""
    model = mlp(hidden=8).double()
    chain, received = chain_of(model), tensors_of(model)[0]
    room: dict[str, Tensor] = {}
    Deferral(chain, received, 3, 6, 0.1, room)
    for each in room.values():
        each.fill_(float("nan"))
    deferral = Deferral(chain, received, 3, 4, 0.1, room)
    for count in (3, 1):
        _, tape = deferral.chain.forward({}, drawn(count, count, 2, 64))
        deferral.chain.descend({}, tape, drawn(0, count, 2, 10), 0.1)
    weights = torch.ones(3, dtype=torch.float64)
    for each in deferral.results().values():
        assert bool(each.weighted_sum(weights).isfinite().all())


@pytest.mark.parametrize("bias", [False, True])
def test_a_deferred_parameter_in_all_its_forms(bias: bool) -> None:
    left, right, start = drawn(1, 4, 3, 5), drawn(2, 4, 3, 2), drawn(3, 5, 2)
    expected = torch.stack([start - 0.5 * s.T @ x for s, x in zip(left, right, strict=True)])
    if bias:
        start = start[:, 0]
        expected = start - 0.5 * left.sum(1)
    found = Deferred(start, 0.5, left, None if bias else right)
    assert len(found) == 4
    assert_close(found.stack(), expected)
    assert_close(found[2], expected[2])
    assert_close(found.only([3, 1]).stack(), expected[[3, 1]])
    weights = torch.tensor([1.0, 0.0, 7.0, 2.5], dtype=torch.float64)
    assert_close(found.weighted_sum(weights), torch.einsum("k,k...->...", weights, expected))
    home = torch.full_like(expected, float("nan"))
    assert found.stack(home) is home
    assert_close(home, expected)


def perceptron(*sizes: int) -> tuple[Chain, dict[str, torch.Size]]:
    model = MLP(input_shape=sizes[:1], num_classes=sizes[-1], hidden_sizes=sizes[1:-1])
    return chain_of(model), {name: each.shape for name, each in model.named_parameters()}


@pytest.mark.parametrize(
    ("sizes", "rows", "expected"),
    [
        ((784, 200, 200, 10), 60, True),
        ((784, 200, 200, 10), 600, False),
        ((3072, 512, 256, 100), 240, True),
        ((64, 32, 10), 20, False),
        ((784, 10), 20, False),
    ],
)
def test_it_pays_for_wide_layers_and_short_turns(
    sizes: tuple[int, ...], rows: int, expected: bool
) -> None:
    assert pays(*perceptron(*sizes), rows) == expected


def test_fewer_clients_fit_the_longer_their_turns() -> None:
    chain, shapes = perceptron(784, 200, 200, 10)
    found = [fitting(chain, shapes, rows) for rows in (60, 600, 10**7)]
    assert found[0] > 32 > found[1] > found[2] == 1


def test_what_else_than_linear_layers_is_trained_is_not_deferred() -> None:
    head = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert not can_defer(chain_of(head))
    assert not can_defer(chain_of(nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))))


def defers(hidden: int, formulation: Any, steps: int) -> bool:
    """Train a round of so many steps; return whether the report holds what was remembered."""
    model = mlp(hidden=hidden)
    trainer = FUNCTIONAL["naive"](training=TRAINING).cohort_trainer(model, CPU, formulation)
    clock = Clock(scenario(sizes=(16,) * 6, dtype=torch.float32), more={"steps": steps})
    report = trainer.train(*tensors_of(model), clock.turns(0, {}), [])
    (kind,) = {isinstance(each, Deferred) for each in report.parameters.values()}
    return kind


def test_unless_it_is_asked_for_updates_are_deferred_where_it_pays() -> None:
    assert defers(512, "auto", steps=2)
    assert not defers(512, "auto", steps=20)
    assert not defers(512, "chain", steps=2)
    assert not defers(4, "auto", steps=2)
    assert defers(4, "deferred", steps=20)
