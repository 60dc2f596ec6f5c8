"""PackNet: weights belong to tasks, the same for all clients, and no later task moves them."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.models.packnet import PackNetModel
from cohort import Federation, scores, shared
from lone_client import TASK_TRAINING, accuracy, gap, live, mlp, model_for, split
from torch import nn

from strategies.continual.avalanche.heads import TaskHeads
from strategies.continual.avalanche.packnet import packnet

THREE = replace(TASK_TRAINING, heads=((0, 1), (2, 3), (4, 5)))
HEAVY = replace(THREE, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01))
FREE = 3


class SmallCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.classifier = nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


@pytest.mark.parametrize("retrain_share", [0.0, 0.5])
@pytest.mark.parametrize("build", [mlp, partial(mlp, norm=True), SmallCNN])
def test_outputs_of_past_tasks_never_change(build, retrain_share: float) -> None:
    federation = Federation(
        packnet(training=HEAVY, retrain_share=retrain_share), shared(task=True), build
    )
    tests, known = split(3, task=True), {}
    for index in range(3):
        for place in federation.learn(index, 4):
            if place == 0 and index and not retrain_share:  # it is pruned as its successor starts
                known[index - 1] = scores(federation.model, tests[index - 1])
            for task, expected in known.items():
                assert torch.equal(scores(federation.model, tests[task]), expected)
        if retrain_share:
            known[index] = scores(federation.model, tests[index])
    assert len(known) >= 2
    assert all(output.std() > 0 for output in known.values())


@pytest.mark.parametrize("retrain_share", [0.0, 0.5])
def test_masks_are_the_same_for_all_clients_whenever_they_come(retrain_share: float) -> None:
    """Client 0 misses the rounds in which the others prune, and all of experience 1."""
    strategy = packnet(training=HEAVY, retrain_share=retrain_share)
    federation = Federation(strategy, shared((0.3, 0.3, 0.4), task=True))
    absent = [[(0, 2)], [(0, place) for place in range(4)], [(0, 0)]]
    for index in range(3):
        for _ in federation.learn(index, 4, absent[index]):
            first, *others = (buffers for _, buffers in federation.replies.values())
            for buffers in others:
                for name, tensor in buffers.items():
                    assert torch.equal(tensor, first[name]), name
    assert int(federation.model.closed) == 2


def test_what_is_pruned_is_what_upstream_prunes() -> None:
    strategy = packnet(training=THREE, prune_proportion=0.4)
    network = model_for(strategy)
    live(strategy, network, split(1, task=True))
    theirs = PackNetModel(copy.deepcopy(network.model))
    theirs.prune(0.4)
    theirs.freeze_pruned()
    live(strategy, network, split(2, task=True)[1:])
    owner = getattr(network.owner, "0/weight")
    assert torch.equal(owner == 0, theirs.wrappee[0].task_index == 0)
    assert torch.equal(owner == FREE, theirs.wrappee[0].task_index == 1)


def test_by_default_each_task_gets_the_same_number_of_weights() -> None:
    strategy = packnet(training=THREE)
    network, stream = model_for(strategy), split(3, task=True)
    live(strategy, network, stream)
    network._close(2)
    counts = getattr(network.owner, "0/weight").flatten().bincount(minlength=4).tolist()
    assert sum(counts) == 64 * 16
    assert max(counts[:3]) - min(counts[:3]) <= 1
    assert counts[FREE] == 0
    assert set(getattr(network.owner, "0/bias").tolist()) == {0}
    assert getattr(network.owner, "2/bias").tolist()[:6] == [0, 0, 1, 1, 2, 2]


def owned(network: nn.Module, task: int) -> torch.Tensor:
    return getattr(network.owner, "0/weight") == task


def test_the_largest_weights_stay_and_retraining_moves_them_alone() -> None:
    strategy = packnet(training=THREE, prune_proportion=0.75, retrain_share=0.5)
    network, stream = model_for(strategy), split(1, task=True)
    live(strategy, network, stream, rounds=3, progress=0.4)
    assert owned(network, FREE).all()
    before = network.model[0].weight.detach().clone()
    live(strategy, network, stream, rounds=3, progress=0.5)
    kept = owned(network, 0)
    assert int(kept.sum()) == 64 * 16 // 4
    assert before[kept].abs().min() >= before[~kept].abs().max()
    after = network.model[0].weight.detach()
    assert torch.equal(after[~kept], before[~kept])
    assert not torch.equal(after[kept], before[kept])


def test_a_task_reads_its_own_weights_and_those_of_tasks_before_it() -> None:
    strategy = packnet(training=THREE, retrain_share=0.5)
    network, stream = model_for(strategy), split(3, task=True)
    for experience in stream:
        for progress in (0.0, 0.5):
            live(strategy, network, [experience], progress=progress)
    network.eval()
    x = stream[0].gather()[0]
    kept, live_weights = getattr(network.kept, "0/weight"), network.model[0].weight
    with torch.no_grad():
        for task in range(3):
            present = owned(network, 2) | owned(network, FREE)  # the last task has all the rest
            readable = torch.stack([owned(network, each) for each in range(task + 1)]).any(0)
            readable |= present & (task == 2)
            hidden = torch.where(present, live_weights, kept)
            features = (x @ (hidden * readable).T + getattr(network.kept, "0/bias")).relu()
            rows = [2 * task, 2 * task + 1]
            source = network.model[2] if task == 2 else None
            weight = source.weight if source else getattr(network.kept, "2/weight")
            bias = source.bias if source else getattr(network.kept, "2/bias")
            by_hand = features @ weight[rows].T + bias[rows]
            assert torch.allclose(network(x)[:, rows], by_hand, atol=1e-5)


def test_training_runs_what_evaluation_shows() -> None:
    strategy, stream = packnet(training=THREE), split(2, task=True)
    network = model_for(strategy)
    live(strategy, network, stream, rounds=2)
    x = stream[1].gather()[0]
    heads = TaskHeads(network, torch.ones(3, 10, dtype=torch.bool))
    trained = heads.train()(x, torch.ones(len(x), dtype=torch.int64))
    assert torch.allclose(trained[:, 2:4], network.eval()(x)[:, 2:4], atol=1e-6)


def test_the_last_task_keeps_all_that_is_left() -> None:
    strategy = packnet(training=THREE, prune_proportion=0.5, retrain_share=0.5)
    network = model_for(strategy)
    for experience in split(3, task=True):
        for progress in (0.0, 0.5, 0.9):
            live(strategy, network, [experience], progress=progress)
    assert int(owned(network, FREE).sum()) == 64 * 16 // 4
    assert int(network.pruned) == 1


def test_without_a_clock_or_retraining_pruning_waits_for_the_next_experience() -> None:
    stream = split(2, task=True)
    for retrain_share, progress in ((0.5, None), (0.0, 0.9)):
        strategy = packnet(training=THREE, retrain_share=retrain_share)
        network = model_for(strategy)
        live(strategy, network, stream[:1], rounds=4, progress=progress)
        assert owned(network, FREE).all()
        live(strategy, network, stream[1:])
        assert int(owned(network, 0).sum()) == math.ceil(64 * 16 / 3)


def test_two_clients_learn_every_task_and_forget_none() -> None:
    streams = shared(task=True)
    federation = Federation(packnet(training=THREE), streams, partial(mlp, hidden=64), 0.0)
    for index in range(3):
        federation.learn_all(index, 5, epochs=2, batch_size=8)
    for index in range(3):
        y = streams[1][index].gather()[1]
        best = scores(federation.model, streams[1][index]).argmax(1) + 2 * index
        assert float((best == y).float().mean()) > 0.95
    assert accuracy(federation.model, streams[1]) > 0  # the whole head is still a classifier


def test_a_past_task_cannot_be_trained_again() -> None:
    strategy, stream = packnet(training=THREE), split(2, task=True)
    network = model_for(strategy)
    live(strategy, network, stream)
    with pytest.raises(ValueError, match=r"^continual=packnet: cannot train task 0 again"):
        live(strategy, network, stream[:1])


def test_two_networks_of_equal_weights_prune_equally_where_magnitudes_tie() -> None:
    strategy, one = packnet(training=THREE, prune_proportion=0.5), None
    for _ in range(2):
        network = model_for(strategy)
        with torch.no_grad():
            network.model[0].weight.copy_(torch.ones(16, 64) * torch.tensor([1.0, -1.0] * 32))
        network.task.fill_(0)
        network._close(0)
        assert int(owned(network, 0).sum()) == 512
        assert one is None or gap(one, network) == 0.0
        one = network


BAD = [
    ({"prune_proportion": 1.5}, r"continual.prune_proportion=1.5: must be in \[0, 1\]"),
    ({"retrain_share": 1.0}, r"continual.retrain_share=1.0: must be in \[0, 1\)"),
    ({"retrain_share": -0.1}, r"continual.retrain_share=-0.1: must be in \[0, 1\)"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_a_bad_setting_is_named(settings, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        packnet(training=THREE, **settings)


def test_models_and_scenarios_that_do_not_fit_are_refused() -> None:
    for heads, message in (
        (None, "continual=packnet: needs a task-incremental scenario"),
        (((0, 1), (1, 2)), "continual=packnet: needs tasks that share no class"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            packnet(training=replace(THREE, heads=heads)).equip(mlp())
    with pytest.raises(ValueError, match=r"^continual=packnet: needs a model whose last linear"):
        packnet(training=THREE).equip(nn.Sequential(nn.Linear(64, 7)))


def test_a_task_that_nobody_learnt_owns_nothing() -> None:
    """The first experience that anybody has samples of is task 1."""
    strategy, stream = packnet(training=THREE), split(3, task=True)
    network = model_for(strategy)
    live(strategy, network, stream[1:])
    assert not owned(network, 0).any()
    assert int(owned(network, 1).sum()) == 64 * 16 // 2
    assert int(network.closed) == 1
