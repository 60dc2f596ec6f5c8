"""Prediction with prototypes: what is measured, how it federates, and each strategy's own part."""

import copy
import pickle
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.models import FeCAMClassifier
from avalanche.models.ncm_classifier import NCMClassifier
from avalanche.training.losses import ICaRLLossPlugin, SCRLoss
from avalanche.training.supervised import StreamingLDA
from cohort import Federation, shared
from hypothesis import given
from hypothesis import strategies as st
from lone_client import (
    DIGITS,
    TASK_TRAINING,
    TRAINING,
    accuracy,
    gap,
    live,
    mlp,
    model_for,
    split,
    turn_at,
    twin,
)
from torch import nn
from torch.nn import functional as F

from fedlearn.augmentation import Augmentation
from fedlearn.heads import HIDDEN
from fedlearn.models.cnn import SmallCNN
from fedlearn.models.lenet import LeNet5
from fedlearn.models.mlp import MLP
from fedlearn.models.resnet import resnet18
from fedlearn.models.torchvision_model import torchvision_model
from fedlearn.screening import average_buffers
from fedlearn.types import Experience, Samples, State
from strategies.continual.avalanche.exemplars import herding, multiplicities
from strategies.continual.avalanche.fecam import fecam
from strategies.continual.avalanche.icarl import icarl
from strategies.continual.avalanche.ncm import ncm
from strategies.continual.avalanche.networks.covariances import ClassCovariances, SharedCovariance
from strategies.continual.avalanche.networks.prototypes import UNKNOWN, Prototypes, softened
from strategies.continual.avalanche.networks.views import View, corrupted
from strategies.continual.avalanche.scr import scr
from strategies.continual.avalanche.slda import slda

MAKE = {
    "ncm": partial(Prototypes, "ncm"),
    "fecam": lambda model, training: ClassCovariances("fecam", model, training, 0.5, 1.0, 1.0),
    "slda": lambda model, training: SharedCovariance("slda", model, training, 1e-4),
}
FACTORIES = {"ncm": ncm, "fecam": fecam, "icarl": icarl, "scr": scr, "slda": slda}
STILL = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=0.0))


def ones(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.float64)


def digits(*classes: int, skip: int = 0, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of `size` samples of each class."""
    rows = [(DIGITS.y == label).nonzero()[skip : skip + size, 0] for label in classes]
    chosen = torch.cat(rows)
    return DIGITS.x[chosen], DIGITS.y[chosen]


def average(model: Prototypes, sent: dict[int, tuple[dict, float]]) -> None:
    """Give `model` what the server makes of what the clients sent."""
    weights = {client_id: weight for client_id, (_, weight) in sent.items()}
    mean = average_buffers({k: buffers for k, (buffers, _) in sent.items()}, weights)
    model.load_state_dict(mean, strict=False)


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


# The model


IMAGE = {"input_shape": (1, 16, 16), "num_classes": 10}
MODELS = {
    "linear": lambda: nn.Linear(256, 10),
    "sequential": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Linear(10, 10)),
    "mlp": lambda: MLP(**IMAGE, batch_norm=True),
    "cnn": lambda: SmallCNN(**IMAGE),
    "lenet": lambda: LeNet5(**IMAGE),
    "resnet18": lambda: resnet18(**IMAGE),
    "torchvision": lambda: torchvision_model(**IMAGE, architecture="mobilenet_v3_small"),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_model_that_ends_in_a_linear_layer_can_have_prototypes(name: str) -> None:
    model = MODELS[name]()
    x = torch.rand(4, 256) if name == "linear" else torch.rand(4, 1, 16, 16)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    equipped = Prototypes("ncm", model, TRAINING)
    assert sum(parameter.numel() for parameter in equipped.parameters()) == parameters
    assert len(equipped.state_dict()) == len(model.state_dict()) + 2
    with torch.no_grad():
        logits, features = equipped.eval().logits_and_features(x)
        assert torch.equal(logits, model(x))
        assert torch.equal(equipped.head(features), logits)
        assert equipped(x).shape == (4, 10)
        assert bool((equipped(x) == UNKNOWN).all())
        equipped.train()
        model.eval()  # the wrapper alone is in training mode: no dropout, no batch statistics
        assert torch.equal(equipped(x), logits)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_finds_its_own_features(how) -> None:
    original = Prototypes("ncm", mlp(), TRAINING).eval()
    other = how(original)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        x, _ = digits(0, 1)
        assert float(other.features(x).abs().max()) == 0.0
        assert float(original.features(x).abs().max()) > 0.0


@pytest.mark.parametrize("name", FACTORIES)
def test_a_model_without_features_is_refused(name: str) -> None:
    strategy = FACTORIES[name](training=TRAINING)
    for model in (nn.Conv2d(1, 10, 3), nn.Sequential(nn.Linear(64, 10), nn.Linear(10, 7))):
        with pytest.raises(ValueError, match=rf"^continual={name}: needs a model whose last lin"):
            strategy.equip(model)
    tokens = strategy.equip(nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 10)))
    with pytest.raises(ValueError, match=rf"^continual={name}: .* one vector of features"):
        tokens(torch.rand(2, 64))


@given(st.lists(st.floats(-1e30, 0), min_size=2, max_size=2))
def test_softened_scores_keep_their_order_and_stay_above_unknown_and_hidden_ones(pair) -> None:
    low, high = sorted(pair)
    soft_low, soft_high = softened(torch.tensor([low, high], dtype=torch.float64)).tolist()
    assert soft_low <= soft_high
    assert soft_low > UNKNOWN > HIDDEN
    if low > -100:
        assert (soft_low, soft_high) == (low, high)
    elif low < 1.01 * high:
        assert soft_low < soft_high


def test_far_samples_are_still_told_apart_among_the_classes_of_a_head() -> None:
    equipped = Prototypes("ncm", mlp(), TRAINING, normalize=False).eval()
    width = equipped.sums.shape[1]
    equipped.counts[:4] = 1.0
    equipped.sums[2], equipped.sums[3] = 1e7, 1.1e7
    scores = equipped.scores(torch.zeros(1, width, dtype=torch.float64))[0]
    assert HIDDEN < float(scores[3]) < float(scores[2]) < float(scores[0])


# Federation


@pytest.mark.parametrize("name", MAKE)
def test_averaged_statistics_are_those_of_the_pooled_samples(name: str) -> None:
    """Three clients of unequal sizes, of overlapping and of different classes."""
    server = MAKE[name](mlp(), TRAINING).eval()
    parts = [
        digits(0, 1, 2, size=13),
        digits(1, 2, 3, skip=13, size=40),
        digits(3, skip=53, size=70),
    ]
    sent = {}
    for client_id, (x, y) in enumerate(parts):
        client = twin(server)
        client.publish(client.measure(x, y, ones(len(y))), len(y))
        sent[client_id] = buffers(client), len(y)
    average(server, sent)
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    pooled = MAKE[name](mlp(), TRAINING).eval()
    pooled.publish(pooled.measure(x, y, ones(len(y))), len(y))
    for buffer, tensor in buffers(pooled).items():
        assert torch.allclose(server.get_buffer(buffer), tensor, rtol=1e-12, atol=1e-14)
    z = server.embed(server.features(x)).double()
    for label in range(4):
        assert torch.allclose(server.means()[label], z[y == label].mean(0), rtol=1e-10)
    tests, _ = digits(0, 1, 2, 3, skip=130)
    with torch.no_grad():
        assert torch.equal(server(tests).argmax(1), pooled(tests).argmax(1))
        assert bool((server(tests)[:, 4:] == UNKNOWN).all())


def test_the_clients_discriminant_analysis_is_the_centralised_one() -> None:
    """Rounds of two clients, three experiences: all samples are in it, each of them once."""
    streams = shared((0.3, 0.7))
    federation = Federation(slda(training=TRAINING, shrinkage=1e-4), streams, server_momentum=0.0)
    for index in range(3):
        federation.learn_all(index, rounds=2, epochs=1)
    model = federation.model.eval()
    x, y = (
        torch.cat(each)
        for each in zip(*(e.gather() for stream in streams for e in stream), strict=True)
    )
    z = model.features(x).detach().double()
    means = torch.stack([z[y == label].mean(0) for label in range(6)])
    scatter = sum((row - means[k]).outer(row - means[k]) for row, k in zip(z, y, strict=True))
    within = scatter / len(z)
    # The forward pass is in float32, and batches of other sizes round otherwise.
    assert torch.allclose(model.means()[:6], means, rtol=1e-5, atol=1e-6)
    assert torch.allclose(model.covariance(), within, rtol=1e-4, atol=1e-6)
    precision = torch.linalg.inv((1 - 1e-4) * within + 1e-4 * torch.eye(z.shape[1]))
    discriminant = z @ precision @ means.T - 0.5 * ((means @ precision) * means).sum(1)
    with torch.no_grad():
        assert torch.equal(model(x).argmax(1), discriminant.argmax(1))
        log_posterior = F.log_softmax(model(x)[:, :6].double(), dim=1)
    near = log_posterior > -20
    expected = F.log_softmax(discriminant, dim=1)
    assert torch.allclose(log_posterior[near], expected[near], atol=1e-2)


@pytest.mark.parametrize("name", MAKE)
def test_what_nobody_has_is_passed_on_for_ever(name: str) -> None:
    server = MAKE[name](mlp(), TRAINING).eval()
    x, y = digits(0, 1)
    server.publish(server.measure(x, y, ones(len(y))), len(y))
    mean, tests = server.means()[0].clone(), digits(0, 1, 5, skip=40)[0]
    before = server(tests).detach()[:, 0]
    for server_round in range(100):
        sent = {}
        for client_id, size in enumerate((7, 31)):
            client, part = twin(server), digits(5, skip=server_round + client_id, size=size)
            client.publish(client.measure(*part, ones(size)), size)
            sent[client_id] = buffers(client), size
        average(server, sent)
    assert torch.allclose(server.means()[0], mean, rtol=1e-12)
    if name != "slda":  # whose covariance is that of all classes at hand
        assert torch.allclose(server(tests).detach()[:, 0], before, rtol=1e-4)
    assert bool((server.counts[[0, 1, 5]] > 0).all())


@pytest.mark.parametrize("name", MAKE)
def test_whoever_has_samples_of_a_class_decides_on_it(name: str) -> None:
    server = MAKE[name](mlp(), TRAINING).eval()
    old, new = digits(0, size=20), digits(0, skip=100, size=10)
    server.publish(server.measure(*old, ones(20)), 20)
    sent = {}
    for client_id, part in enumerate((new, digits(7, size=70))):
        client = twin(server)
        client.publish(client.measure(*part, ones(len(part[1]))), len(part[1]))
        sent[client_id] = buffers(client), len(part[1])
    average(server, sent)
    expected = server.embed(server.features(new[0])).double().mean(0)
    assert torch.allclose(server.means()[0], expected, atol=1e-7)


# The end of a turn


@pytest.mark.parametrize("name", ["ncm", "scr", "icarl"])
def test_prototypes_are_those_of_the_data_and_memory_at_the_last_features(name: str) -> None:
    strategy = FACTORIES[name](training=TRAINING, memory_per_client=11)
    stream, model = split(3), model_for(strategy, partial(mlp, dropout=0.5))
    state = live(strategy, model, stream, rounds=2)[-1].state
    rows = state.tensors["exemplars/rows"]
    assert len(rows) == 11
    x, y = stream[2].gather()
    old = [stream[index].gather(torch.tensor([row])) for index, row in rows.tolist()]
    x = torch.cat([x, *(sample for sample, _ in old)])
    y = torch.cat([y, *(label for _, label in old)])
    model.eval()
    features = F.normalize(model.features(x), dim=1).detach()
    means = torch.stack([features[y == label].mean(0) for label in range(6)])
    expected = -torch.cdist(features, F.normalize(means, dim=1))
    assert torch.allclose(model(x).detach()[:, :6], expected, atol=1e-5)
    assert bool((model(x)[:, 6:] == UNKNOWN).all())


@pytest.mark.parametrize("name", FACTORIES)
def test_taking_prototypes_leaves_no_trace(name: str) -> None:
    strategy = FACTORIES[name](training=STILL)
    model = model_for(strategy, partial(mlp, norm=True))
    steps = live(strategy, model, split(1))[-1].steps
    assert int(model.model[1].num_batches_tracked) == steps
    assert all(module.training for module in model.modules())


def test_a_class_that_comes_back_has_the_mean_of_all_its_samples() -> None:
    """Memory keeps 4 of 40 samples: each stands for 10."""
    rows = (DIGITS.y == 0).nonzero()[:50, 0]
    stream = [
        Experience(0, DIGITS, rows[:40], (0,)),
        Experience(1, DIGITS, rows[40:], (0,)),
    ]
    strategy = ncm(training=STILL, memory_per_client=4, normalize=False)
    model = model_for(strategy)
    state = live(strategy, model, stream)[-1].state
    kept = DIGITS.x[state.tensors["exemplars/rows"][:, 1]]
    features = model.eval().features
    past, now = features(kept).double().mean(0), features(DIGITS.x[rows[40:]]).double().mean(0)
    assert torch.allclose(model.means()[0], 0.8 * past + 0.2 * now, rtol=1e-6)
    assert float(model.counts[0]) == pytest.approx((4 + 10) / 10)


def test_samples_of_classes_that_do_not_come_back_weigh_1_each() -> None:
    now, past = multiplicities(
        torch.tensor([3, 3, 4]), torch.tensor([0, 1, 1]), torch.tensor([9.0, 40, 0, 0, 0]).double()
    )
    assert now.tolist() == past.tolist() == [1.0, 1.0, 1.0]


def test_avalanches_update_mixes_in_means_of_features_that_are_gone() -> None:
    """Upstream, at its default momentum, after one update with the mean 1 and one with 3."""
    theirs = NCMClassifier(normalize=False)
    for value in (1.0, 3.0):
        theirs.update_class_means_dict({0: torch.full((2,), value)})
    assert float(theirs.class_means[0, 0]) == 2.0
    ours = Prototypes("ncm", nn.Linear(2, 1), replace(TRAINING, num_classes=1), normalize=False)
    for value in (1.0, 3.0):
        label = torch.zeros(1, dtype=torch.int64)
        ours.publish(ours.measure(torch.full((1, 2), value), label, ones(1)), 1)
    assert float(ours.means()[0, 0]) == 3.0


@pytest.mark.parametrize("name", FACTORIES)
def test_each_tasks_head_predicts_with_its_own_prototypes(name: str) -> None:
    strategy = FACTORIES[name](training=TASK_TRAINING)
    model, stream = model_for(strategy, partial(mlp, hidden=50)), split(3, size=150, task=True)
    live(strategy, model, stream, rounds=3, epochs=5, batch_size=8)
    for experience in stream:
        x, y = experience.gather()
        scores = model.eval()(x).detach()
        assert bool((scores > HIDDEN).all())
        first = 2 * experience.index
        hits = (scores[:, first : first + 2].argmax(1) + first == y).float().mean()
        assert float(hits) > 0.93


@pytest.mark.parametrize("name", FACTORIES)
def test_class_incremental_all_classes_are_known(name: str) -> None:
    strategy = FACTORIES[name](training=TRAINING)
    model, stream = model_for(strategy, partial(mlp, hidden=50)), split(5, size=150)
    live(strategy, model, stream, rounds=3, epochs=5, batch_size=16)
    assert accuracy(model, stream) > 0.8


# NCM without memory


def test_ncm_without_memory_keeps_nothing_but_the_means_it_had() -> None:
    strategy, model = ncm(training=STILL, memory_per_client=0), model_for(ncm(training=STILL))
    reports = live(strategy, model, split(3), rounds=2)
    assert not any(report.state.tensors or report.replayed for report in reports)
    x, y = digits(0, 1, 2, 3, 4, 5, size=20)
    assert float((model.eval()(x).argmax(1) == y).float().mean()) > 0.6


# Herding


def brute_force_herding(features: torch.Tensor, size: int) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < min(size, len(features)):
        rest = [i for i in range(len(features)) if i not in chosen]
        gaps = [float((features.mean(0) - features[[*chosen, i]].mean(0)).norm()) for i in rest]
        chosen.append(rest[gaps.index(min(gaps))])
    return chosen


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 100))
def test_herding_is_the_greedy_search_of_the_paper(n: int, size: int, seed: int) -> None:
    features = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)).double()
    features = F.normalize(features, dim=1)
    assert herding(features, size).tolist() == brute_force_herding(features, size)


# iCaRL


def tiny() -> list[Experience]:
    """Return two experiences of 6 samples, of classes 0 and 1, then 2 and 3."""
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(5))
    store = Samples(x, torch.tensor([0, 1, 0, 1, 1, 0, 2, 3, 2, 3, 3, 2]))
    first, second = torch.arange(6), torch.arange(6, 12)
    return [Experience(0, store, first, (0, 1)), Experience(1, store, second, (2, 3))]


TINY = replace(TRAINING, num_classes=4, input_shape=(3,))


def test_icarl_classifies_new_classes_and_distils_old_ones() -> None:
    strategy, stream = icarl(training=TINY, memory_per_client=6), tiny()
    own = strategy.equip(nn.Linear(3, 4))
    state = strategy.train_turn(own, stream[0], stream.__getitem__, turn_at(0), State()).state
    received = strategy.equip(nn.Linear(3, 4))
    before = twin(received)
    turn = turn_at(1, previous=stream[0])
    report = strategy.train_turn(received, stream[1], stream.__getitem__, turn, state)
    x, y = (torch.cat(each) for each in zip(*(e.gather() for e in stream), strict=True))
    target = F.one_hot(y, 4).float()
    target[:, :2] = own.model(x).sigmoid()[:, :2].detach()
    p = before.model(x).sigmoid().detach()
    loss = -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()
    assert report.loss == pytest.approx(float(loss), rel=1e-5)
    assert report.replayed == 6
    assert report.state.num_bytes == 2 * 16 * 4 + (4 + 12) * 8 + 6 * 3 * 8 + 4 * 8


def test_upstreams_icarl_learns_nothing_of_a_class_that_comes_back_and_ours_does() -> None:
    stream = [replace(each, classes=(0, 1, 2, 3)) for each in tiny()]
    strategy = icarl(training=TINY)
    oracle = strategy._strategy(strategy.equip(nn.Linear(3, 4)), stream.__getitem__, turn_at(0))
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    oracle.teacher, oracle.old_classes = {"weight": torch.ones(4, 3), "bias": torch.ones(4)}, [2, 3]
    x, y = stream[1].gather()
    assert torch.equal(oracle.targets(x, y), F.one_hot(y, 4).float())
    theirs, losses = ICaRLLossPlugin(), []
    theirs.old_classes = [2, 3]
    for labels in (y, 5 - y):  # 2 becomes 3, and 3 becomes 2
        theirs.old_logits = torch.ones(6, 4)
        losses.append(float(theirs(torch.zeros(6, 4), labels)))
    assert losses[0] == losses[1]


def test_icarls_memory_is_one_bound_and_herded() -> None:
    """Upstream keeps ceil(20 / 6) = 4 samples of each of 6 classes."""
    strategy, stream = icarl(training=STILL, memory_per_client=20), split(4)
    model = model_for(strategy)
    state = live(strategy, model, stream)[-1].state
    rows = state.tensors["exemplars/rows"]
    labels = DIGITS.y[rows[:, 1]]
    assert sorted(labels.bincount().tolist()) == [3, 3, 3, 3, 4, 4]
    model.eval()
    for label in range(6):
        of_class = stream[label // 2].rows[DIGITS.y[stream[label // 2].rows] == label]
        features = F.normalize(model.features(DIGITS.x[of_class]), dim=1).detach()
        kept = set(rows[labels == label, 1].tolist())
        best = herding(features, len(kept))
        assert kept == set(of_class[best].tolist())


def test_icarls_loss_leaves_other_heads_alone() -> None:
    strategy, model = icarl(training=TASK_TRAINING), mlp()
    before = model[-1].weight.detach().clone()
    equipped = strategy.equip(model)
    live(strategy, equipped, split(2, task=True))
    moved = (model[-1].weight.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == [0, 1, 2, 3]


# SCR


def contrast(z: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    """Return eq. 5 for projections z (n, p), one anchor and one positive at a time."""
    total = 0.0
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        denominator = sum(torch.exp(z[i] @ z[j] / temperature) for j in others)
        positives = [j for j in others if labels[j] == labels[i]]
        terms = [torch.log(torch.exp(z[i] @ z[j] / temperature) / denominator) for j in positives]
        total -= float(sum(terms)) / len(positives)
    return total / len(z)


def test_scr_contrasts_two_views_of_samples_and_memory() -> None:
    """Inputs are not images and nothing is swapped: both views are the samples themselves."""
    still = replace(TINY, optimizer=partial(torch.optim.SGD, lr=0.0))
    strategy = scr(training=still, memory_per_client=6, corruption=0.0, temperature=0.3)
    stream, model = tiny(), model_for(strategy, lambda: nn.Linear(3, 4))
    report = live(strategy, model, stream)[-1]
    x, y = (torch.cat(each) for each in zip(*(e.gather() for e in stream), strict=True))
    z = model.projected(torch.cat([x, x])).detach()
    assert report.loss == pytest.approx(contrast(z, torch.cat([y, y]), 0.3), rel=1e-4)
    assert report.replayed == 6
    theirs = SCRLoss(temperature=0.3)(torch.stack(z.chunk(2), dim=1), y)
    assert float(theirs) == pytest.approx(report.loss * 0.3 / 0.07, rel=1e-4)


def test_scrs_views_depend_on_the_epoch_and_not_on_the_program() -> None:
    strategy, stream = scr(training=TRAINING), split(1)
    models = [model_for(strategy) for _ in range(2)]
    for model in models:
        torch.rand(3)
        live(strategy, model, stream)
    assert gap(*models) == 0.0


def test_corruption_swaps_a_share_of_values_within_a_feature() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(200.0)[:, None] + 1000 * torch.arange(30.0)
    swapped = corrupted(x, 0.3, generator)
    assert torch.equal((swapped // 1000), (x // 1000))
    assert float((swapped != x).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(corrupted(x, 0.0, generator), x)


def test_images_are_augmented_and_other_inputs_corrupted() -> None:
    view = View(Augmentation(flip=False, crop=1, rotation=0.0), corruption=1.0)
    image = torch.zeros(64, 1, 8, 8)
    image[:, :, 4, 4] = torch.arange(1.0, 65.0)[:, None]
    seen = view(image, torch.Generator().manual_seed(0))
    assert torch.equal(seen.sum((1, 2, 3)), image.sum((1, 2, 3)))  # moved, not swapped
    assert not torch.equal(seen, image)
    flat = view(image.flatten(1), torch.Generator().manual_seed(0))
    assert not torch.equal(flat.sum(1), image.flatten(1).sum(1))


# LDA


def upstreams_lda(model: nn.Module) -> StreamingLDA:
    return StreamingLDA(
        slda_model=model, criterion=nn.CrossEntropyLoss(), input_size=16, num_classes=10
    )


def test_a_class_that_nobody_has_met_is_never_predicted() -> None:
    """Upstream's has the mean 0, so its discriminant is 0, and others may be less."""
    model = SharedCovariance("slda", mlp(), TRAINING, 1e-4).eval()
    x, y = digits(0, 1)
    model.publish(model.measure(x, y, ones(len(y))), len(y))
    strange = -model.means()[:2].mean(0, keepdim=True)
    scores = model.scores(strange).masked_fill(model.counts == 0, UNKNOWN)
    assert int(scores.argmax()) in (0, 1)
    theirs = upstreams_lda(model.model)
    for features, label in zip(model.features(x), y, strict=True):
        theirs.fit(features[None], label[None])
    assert int(theirs.predict(strange.float()).argmax()) not in (0, 1)


def test_the_order_of_samples_makes_no_difference() -> None:
    x, y = digits(0, 1, 2)
    results: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}
    for order in (torch.arange(len(y)), torch.arange(len(y)).flip(0)):
        model = SharedCovariance("slda", mlp(), TRAINING, 1e-4).eval()
        model.publish(model.measure(x[order], y[order], ones(len(y))), len(y))
        results["ours"].append(model.covariance())
        theirs = upstreams_lda(model.model)
        for features, label in zip(model.features(x[order]), y[order], strict=True):
            theirs.fit(features[None], label[None])
        results["theirs"].append(theirs.Sigma)
    assert torch.allclose(*results["ours"], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(*results["theirs"], rtol=1e-2)


# FeCAM


def upstreams_fecam(features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return Avalanche's scores (n, C), with covariances shrunk once, as in the paper."""
    theirs = FeCAMClassifier()
    theirs._tukey_transforms = lambda x: x.sqrt()  # theirs copies a tensor with a warning
    z = theirs.apply_transforms(features)
    means = {k: z[y == k].mean(0) for k in y.unique().tolist()}
    shrunk = {k: theirs._shrink_cov(z[y == k].T.cov(correction=1)) for k in means}
    theirs.replace_class_means_dict(means)
    theirs.replace_class_cov_dict(theirs._normalize_cov(shrunk))
    return theirs(features)


def fitted_fecam(features: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return our scores (n, C)."""
    model = MAKE["fecam"](mlp(), TRAINING).eval()
    embedded = model.embed(features).double()
    model.publish(model.summarise(embedded, y, ones(len(y))), len(y))
    return model.scores(embedded)


def test_fecams_distances_are_avalanches() -> None:
    y = digits(0, 1, 2)[1]
    features = torch.rand(len(y), 16, generator=torch.Generator().manual_seed(1)) + y[:, None]
    ours, theirs = fitted_fecam(features, y), upstreams_fecam(features, y)
    assert torch.allclose(ours[:, :3].float(), theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("case", ["below 0", "no covariance"])
def test_fecam_is_finite_where_upstream_is_not(case: str) -> None:
    features, y = torch.rand(20, 16) + 0.1, torch.arange(20) % 2
    if case == "below 0":
        features[:, 0] *= -1
    else:
        features[:] = 0.25
    assert bool(fitted_fecam(features, y).isfinite().all())
    with suppress(torch.linalg.LinAlgError):  # what the inverse of NaN is depends on the machine
        assert not bool(upstreams_fecam(features, y).isfinite().all())


def test_fecam_takes_a_class_of_one_sample() -> None:
    features, y = torch.rand(20, 16), (torch.arange(20) > 0).long()
    scores = fitted_fecam(features, y)
    assert bool(scores.isfinite().all())
    assert int(scores[0].argmax()) == 0


# Settling


@pytest.mark.parametrize("name", ["slda", "fecam"])
def test_the_backbone_is_trained_in_the_first_experience_only(name: str) -> None:
    strategy, stream = FACTORIES[name](training=TRAINING), split(3)
    model = model_for(strategy, partial(mlp, norm=True))
    start = twin(model)
    live(strategy, model, stream[:1], rounds=2)
    assert gap(start.model, model.model) > 1e-3
    whole = model_for(strategy, partial(mlp, norm=True))
    live(strategy, whole, stream, rounds=2)
    assert gap(whole.model, model.model) == 0.0  # batch statistics too
    never = FACTORIES[name](training=TRAINING, train_backbone="never")
    untouched = twin(start)
    live(never, untouched, stream, rounds=2)
    assert gap(untouched.model, start.model) == 0.0


@pytest.mark.parametrize("name", ["slda", "fecam"])
def test_who_had_nothing_in_the_first_experience_does_not_train_in_the_second(name: str) -> None:
    """In its first round the others' experience 0 is measured, at the weights of that round."""
    strategy, stream = FACTORIES[name](training=TRAINING), split(2)
    model = model_for(strategy)
    start = twin(model)
    strategy.train_turn(model, stream[1], stream.__getitem__, turn_at(4), State())
    assert gap(model.model, start.model) == 0.0
    assert float(model.settled) == 1.0


@pytest.mark.parametrize("name", ["slda", "fecam"])
def test_who_joins_late_finds_the_backbone_settled(name: str) -> None:
    strategy, stream = FACTORIES[name](training=TRAINING), split(2)
    model = model_for(strategy)
    live(strategy, model, stream)
    settled = twin(model)
    turn = turn_at(5, client_id=9)
    strategy.train_turn(model, stream[0], stream.__getitem__, turn, State())
    assert gap(model.model, settled.model) == 0.0
    assert float(model.settled) == 1.0


@pytest.mark.parametrize("name", ["slda", "fecam"])
def test_an_experience_is_measured_at_the_weights_that_all_received(name: str) -> None:
    strategy, stream = FACTORIES[name](training=TRAINING), split(2)
    model = model_for(strategy)
    state = live(strategy, model, stream[:1])[-1].state
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    turn = turn_at(1, previous=stream[0])
    strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
    x, y = stream[0].gather()
    model.eval()
    expected = model.embed(model.features(x[y == 0])).double().mean(0)
    assert torch.allclose(model.means()[0], expected, rtol=1e-6)


# Settings


BAD = [
    (ncm, {"memory_per_client": -1}, "continual.memory_per_client=-1: must be at least 0"),
    (
        ncm,
        {"memory_per_client": 0, "memory_batch_size": 4},
        "continual.memory_batch_size=4: there is no memory; use null",
    ),
    (slda, {"shrinkage": 0}, "continual.shrinkage=0: must be greater than 0"),
    (slda, {"train_backbone": "always"}, "continual.train_backbone=always: must be one of first"),
    (fecam, {"memory_per_client": 5}, "continual.memory_per_client=5: only train_backbone=always"),
    (fecam, {"tukey": 1.5}, r"continual.tukey=1.5: must be in \[0, 1\]"),
    (fecam, {"shrink_covariance": 2}, r"continual.shrink_covariance=2: must be in \[0, 1\]"),
    (icarl, {"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    (scr, {"temperature": 0}, "continual.temperature=0: must be greater than 0"),
    (scr, {"rotation": 200}, r"continual.rotation=200: must be in \[0, 180\]"),
    (scr, {"corruption": 2}, r"continual.corruption=2: must be in \[0, 1\]"),
]


@pytest.mark.parametrize(("factory", "settings", "message"), BAD)
def test_settings_out_of_bounds_are_named(factory, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        factory(training=TRAINING, **settings)


def test_fecam_with_replay_keeps_what_ncm_keeps() -> None:
    settings = {"training": TRAINING, "memory_per_client": 20}
    one, other = fecam(train_backbone="always", **settings), ncm(**settings)
    states = [live(each, model_for(each), split(3))[-1].state for each in (one, other)]
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for key, tensor in states[0].tensors.items():
        assert torch.equal(tensor, states[1].tensors[key])
