"""Task-incremental training sees only the head of a sample's task."""

from dataclasses import replace

import pytest
import torch
from avalanche.models import avalanche_forward
from avalanche.models.utils import is_multi_task_module
from lone_client import STRATEGIES, TRAINING, live, mlp, split
from torch.nn import functional as F

from fedlearn.heads import head_table
from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.heads import TaskHeads

HEADS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
TRAINING_WITH_HEADS = replace(TRAINING, heads=HEADS)


def rows_that_move(name: str, length: int) -> list[set[int]]:
    """Return which outputs' weights move in each of `length` experiences."""
    strategy, model = STRATEGIES[name](training=TRAINING_WITH_HEADS), mlp()
    moved = []
    for experiences in range(1, length + 1):
        model = mlp()
        live(strategy, model, split(experiences - 1, task=True))
        before = model[-1].weight.detach().clone()
        model = mlp()
        live(strategy, model, split(experiences, task=True))
        changed = (model[-1].weight.detach() != before).any(dim=1)
        moved.append(set(changed.nonzero().flatten().tolist()))
    return moved


@pytest.mark.parametrize("name", ["naive", "ewc", "ewc_online", "si", "mas"])
def test_only_the_present_head_moves(name: str) -> None:
    assert rows_that_move(name, 3) == [{0, 1}, {2, 3}, {4, 5}]


@pytest.mark.parametrize("name", ["lwf", "replay", "agem", "der", "der_plus_plus"])
def test_heads_of_the_past_move_with_memory_and_heads_of_the_future_do_not(name: str) -> None:
    first, second, third = rows_that_move(name, 3)
    assert first == {0, 1}
    assert {2, 3} <= second <= {0, 1, 2, 3}
    assert {4, 5} <= third <= {0, 1, 2, 3, 4, 5}
    if name != "agem":  # which projects only where it must
        assert third == {0, 1, 2, 3, 4, 5}


def test_the_gradient_of_other_heads_outputs_is_exactly_0() -> None:
    model = mlp()
    logits = []
    model[-1].register_forward_hook(lambda _, __, output: logits.append(output))
    seen = TaskHeads(model, head_table(HEADS, 10))
    x, y = split(2)[1].gather()
    output = avalanche_forward(seen, x, torch.ones_like(y))
    logits[0].retain_grad()
    F.cross_entropy(output, y).backward()
    others = [0, 1, 4, 5, 6, 7, 8, 9]
    assert torch.equal(logits[0].grad[:, others], torch.zeros(len(y), 8))
    assert bool((logits[0].grad[:, 2:4] != 0).all())


def test_a_batch_may_mix_tasks() -> None:
    seen, x = TaskHeads(mlp(), head_table(HEADS, 10)), split(1)[0].gather()[0][:4]
    tasks = torch.tensor([3, 0, 3, 1])
    mixed, every = seen(x, tasks), seen(x, None)
    for place, task in enumerate(tasks.tolist()):
        assert torch.equal(mixed[place], every[task][place])


def test_the_heads_are_the_models_own_parameters_under_its_own_names() -> None:
    model = mlp(norm=True)
    seen = TaskHeads(model, head_table(HEADS, 10))
    assert is_multi_task_module(seen)
    assert [name for name, _ in seen.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(
        one is other for one, other in zip(seen.parameters(), model.parameters(), strict=True)
    )
    assert seen.state_dict().keys() == model.state_dict().keys()
    seen.load_state_dict({name: torch.ones_like(t) for name, t in model.state_dict().items()})
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())
    seen.eval()
    assert not any(module.training for module in model.modules())
    with second_pass(seen.train()):
        assert not model.training
    assert model.training


@pytest.mark.parametrize("name", ["ewc", "si", "lwf", "mas"])
def test_state_has_the_same_names_with_and_without_heads(name: str) -> None:
    with_heads, without = (
        live(STRATEGIES[name](training=training), mlp(), split(2, task=task))[-1].state
        for training, task in ((TRAINING_WITH_HEADS, True), (TRAINING, False))
    )
    assert with_heads.tensors.keys() == without.tensors.keys()


def test_lwf_distils_every_head_of_the_past() -> None:
    """With no distillation the heads of the past stay, with it both of them move."""
    strategy = STRATEGIES["lwf"](training=TRAINING_WITH_HEADS, alpha=0.0)
    model = mlp()
    live(strategy, model, split(2, task=True))
    before = model[-1].weight.detach()[:4].clone()
    again = mlp()
    live(strategy, again, split(3, task=True))
    assert torch.equal(again[-1].weight.detach()[:4], before)
    assert rows_that_move("lwf", 3)[2] >= {0, 1, 2, 3}
