"""CWR*: the bank is the paper's, after every round, for one client and for several."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.training.plugins import CWRStarPlugin
from cohort import Federation, copied, shared
from lone_client import SGD, TRAINING, accuracy, live, mlp, model_for, persist, split
from torch import nn
from torch.nn import functional as F

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, Samples
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.cwr_star import cwr_star
from strategies.continual.avalanche.networks.cwr import CwrNetwork

HEAVY = replace(
    TRAINING, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
)


def returning_stream() -> list[Experience]:
    """Return two experiences, of classes 0 and 1, then 1 and 2: class 1 comes back."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(5))
    labels = [0] * 5 + [1] * 4 + [1] * 9 + [2] * 2
    store = Samples(x, torch.tensor(labels))
    return [
        Experience(0, store, torch.arange(9), (0, 1)),
        Experience(1, store, torch.arange(9, 20), (1, 2)),
    ]


def linear() -> nn.Module:
    with borrowed_global_rng(3):
        return nn.Linear(3, 4)


def test_the_bank_is_the_papers_formula() -> None:
    strategy = cwr_star(training=replace(TRAINING, num_classes=4, input_shape=(3,)))
    network, stream = model_for(strategy, linear), returning_stream()
    live(strategy, network, stream[:1], rounds=3)
    first = network.trained.detach().double()
    live(strategy, network, stream, rounds=3)  # goes on in experience 0, then 1
    second = network.trained.detach().double()

    network = model_for(strategy, linear)
    live(strategy, network, stream[:1], rounds=3)
    mean = first[[0, 1]].mean()
    bank = {0: first[0] - mean, 1: first[1] - mean}
    shown = network.consolidated()[0].double()
    assert torch.allclose(shown[0], bank[0], atol=1e-6)
    assert torch.allclose(shown[1], bank[1], atol=1e-6)
    assert (shown[2:] == 0).all()

    live(strategy, network, stream[1:], rounds=3)
    second = network.trained.detach().double()
    mean = second[[1, 2]].mean()
    past_weight = math.sqrt(4 / 9)
    bank[1] = (bank[1] * past_weight + second[1] - mean) / (past_weight + 1)
    bank[2] = second[2] - mean
    shown, past = network.consolidated()
    for label, expected in bank.items():
        assert torch.allclose(shown[label].double(), expected, atol=1e-6)
    assert past.tolist() == [5, 13, 2, 0]


def test_training_starts_at_the_bank_for_present_classes_and_at_0_for_others() -> None:
    still = replace(TRAINING, num_classes=4, optimizer=partial(torch.optim.SGD, lr=0.0))
    moving = replace(still, optimizer=SGD)
    network, stream = model_for(cwr_star(training=moving), linear), returning_stream()
    live(cwr_star(training=moving), network, stream[:1], rounds=3)
    bank, parameter = network.consolidated()[0].detach(), network.weight.detach().clone()
    live(cwr_star(training=still), network, stream[1:])
    assert torch.allclose(network.trained[1], bank[1], atol=1e-6)
    assert torch.allclose(network.trained[[0, 2, 3]], torch.zeros(3, 3), atol=1e-6)
    assert torch.equal(network.weight, parameter)  # what the server averages makes no jump


def test_the_model_predicts_with_the_bank_after_every_round() -> None:
    strategy, stream = cwr_star(training=TRAINING), split(2)
    network, x = model_for(strategy), stream[0].gather()[0]
    live(strategy, network, stream[:1], rounds=2)
    for rounds in (1, 2):
        live(strategy, network, stream[1:], rounds=rounds)
        network.eval()
        bank, _ = network.consolidated()
        assert torch.equal(network(x), F.linear(network.frozen(x), bank))
        assert bank[:4].abs().sum(1).min() > 0
        assert (bank[4:] == 0).all()


@pytest.mark.parametrize("bias", [False, True])
def test_one_client_is_upstreams_plugin_on_a_head_without_bias(bias: bool) -> None:
    def build() -> nn.Module:
        with borrowed_global_rng(0):
            head = nn.Linear(32, 10, bias=bias)
            return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), head)

    theirs, stream = build(), split(4)
    plugin = CWRStarPlugin(theirs)
    upstream = AvalancheContinual(TRAINING, plugins=lambda: [plugin], consolidates="model")
    persist(upstream, theirs, stream, 5)
    ours = model_for(cwr_star(training=TRAINING), build)
    live(cwr_star(training=TRAINING), ours, stream, rounds=5)
    x = torch.cat([experience.gather()[0] for experience in stream])
    difference = (ours.eval()(x) - theirs.eval()(x)).abs().max()
    assert (difference < 1e-5) is not bias  # with a bias, upstream's is never consolidated


def test_no_client_and_no_server_moves_the_backbone_after_the_first_experience() -> None:
    federation = Federation(cwr_star(training=HEAVY), shared())
    federation.learn_all(0, 3)
    network, x = federation.model, torch.rand(5, 64)
    backbone = network.eval().backbone(x)
    moved = copied(network)[0]["backbone.0.weight"]
    for index in (1, 2):
        for _ in federation.learn(index, 3):
            assert torch.equal(network.frozen(x), backbone)
            assert network(x).isfinite().all()
    assert not torch.equal(network.backbone(x), backbone)  # server momentum moves the parameters
    assert not torch.equal(copied(network)[0]["backbone.0.weight"], moved)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_an_unfrozen_backbone_goes_on_training() -> None:
    strategy = cwr_star(training=TRAINING, freeze_backbone=False)
    network, x = model_for(strategy), torch.rand(5, 64)
    live(strategy, network, split(1), rounds=2)
    before = network.backbone(x).detach()
    live(strategy, network, split(2)[1:], rounds=2)
    assert not torch.allclose(network.backbone(x), before, atol=1e-3)


def counted(labels: list[int], network: CwrNetwork) -> CwrNetwork:
    """Have `network` count a client's labels; its experience is of classes 0 to 3."""
    store = Samples(torch.zeros(len(labels), 64), torch.tensor(labels))
    network.enter(Experience(0, store, torch.arange(len(labels)), (0, 1, 2, 3)), None)
    return network


def test_counts_are_a_mean_over_the_clients_that_hold_the_class() -> None:
    network = model_for(cwr_star(training=TRAINING))
    one = counted([0] * 6 + [1] * 2, network).present.clone()
    network.present.zero_()
    other = counted([1] * 10 + [2] * 6, network).present.clone()
    network.present = (8 * one + 16 * other) / 24
    expected = torch.tensor([6.0, (8 * 2 + 16 * 10) / 24, 6.0, 0.0])
    assert torch.allclose(network.current[:4], expected, rtol=1e-4)


def test_a_class_that_nobody_in_the_cohort_holds_keeps_its_count_for_any_number_of_rounds() -> None:
    network = counted([0] * 6 + [1] * 2, model_for(cwr_star(training=TRAINING)))
    for _ in range(50):
        counted([1] * 3, network)
    assert network.current[:4].tolist() == [6.0, 3.0, 0.0, 0.0]


def test_two_clients_that_share_classes_unequally_learn_all_of_them() -> None:
    streams = shared((0.2, 0.8))
    federation = Federation(cwr_star(training=TRAINING), streams, partial(mlp, hidden=64), 0.0)
    for index in range(3):
        federation.learn_all(index, 6, epochs=2, batch_size=8)
    assert accuracy(federation.model, streams[1]) > 0.6


def test_a_model_without_an_output_layer_is_refused_in_one_line() -> None:
    message = "^continual=cwr_star: needs a model whose last linear layer has the 10 classes"
    for model in (nn.Conv2d(1, 10, 3), nn.Linear(64, 7)):
        with pytest.raises(ValueError, match=message):
            cwr_star(training=TRAINING).equip(model)
