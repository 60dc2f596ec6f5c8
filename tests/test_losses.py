"""Losses: what each is by hand, what each must not see, and that they can be batched."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fedlearn.heads import HIDDEN, companion_table, hide
from fedlearn.losses import Loss, class_weights, make_loss
from fedlearn.types import LocalTraining

CLASSES = 5
TRAINING = LocalTraining(torch.optim.SGD, num_classes=CLASSES)
KINDS = [
    Loss("cross_entropy"),
    Loss("cross_entropy", label_smoothing=0.2),
    Loss("bce"),
    Loss("mse"),
]
kinds = pytest.mark.parametrize("loss", KINDS, ids=["ce", "smooth", "bce", "mse"])


def _batch(size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, CLASSES, generator=generator)
    return logits, torch.randint(CLASSES, (size,), generator=generator)


def test_without_options_it_is_torchs_cross_entropy_bit_for_bit_gradient_included():
    logits, labels = _batch()
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = make_loss(TRAINING, labels)(ours, labels)
    reference = F.cross_entropy(theirs, labels)
    assert torch.equal(loss, reference)
    loss.backward()
    reference.backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_every_kind_equals_torchs_own_where_nothing_is_hidden():
    logits, labels = _batch()
    one_hot = F.one_hot(labels, CLASSES).float()
    smooth = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert torch.allclose(Loss(label_smoothing=0.2)(logits, labels), smooth)
    binary = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    assert torch.allclose(Loss("bce")(logits, labels), binary.sum(1).mean())
    assert torch.allclose(Loss("mse")(logits, labels), F.mse_loss(logits, one_hot))


def test_a_logits_gradient_under_bce_is_on_the_scale_of_cross_entropys():
    logits = torch.zeros(1, CLASSES, requires_grad=True)
    Loss("bce")(logits, torch.tensor([2])).backward()
    assert torch.allclose(logits.grad, 0.5 - F.one_hot(torch.tensor([2]), CLASSES).float())


@kinds
def test_hidden_outputs_count_in_no_loss_and_get_no_gradient(loss):
    """The loss over a head of three is the loss of a model that has only those three outputs."""
    logits, _ = _batch(4)
    labels = torch.tensor([0, 2, 1, 0])
    logits.requires_grad_()
    masked = loss(hide(logits, torch.tensor([True, True, True, False, False])), labels)
    assert torch.allclose(masked, loss(logits[:, :3], labels))
    masked.backward()
    assert (logits.grad[:, 3:] == 0).all()
    assert (logits.grad[:, :3] != 0).any()


@kinds
def test_a_sample_sees_the_companions_of_its_label_only(loss):
    logits, _ = _batch(3)
    labels = torch.tensor([0, 4, 2])
    groups = ((0, 1), (2, 3, 4))
    masked = replace(loss, companions=companion_table(groups, CLASSES))(logits, labels)
    by_hand = torch.stack(
        [
            loss(logits[:1, :2], torch.tensor([0])),
            loss(logits[1:2, 2:], torch.tensor([2])),
            loss(logits[2:, 2:], torch.tensor([0])),
        ]
    ).mean()
    assert torch.allclose(masked, by_hand)


def test_make_loss_masks_what_head_mask_asks_for():
    logits, labels = _batch()
    groups = ((0, 1), (2, 3, 4))
    seen = make_loss(replace(TRAINING, mask_loss=groups), labels)(logits, labels)
    hidden = hide(logits, companion_table(groups, CLASSES)[labels])
    assert torch.equal(seen, F.cross_entropy(hidden, labels))
    assert not torch.equal(seen, F.cross_entropy(logits, labels))


@kinds
def test_the_mean_is_the_weighted_mean_of_the_terms(loss):
    logits, labels = _batch()
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1])
    losses, given = replace(loss, class_weights=weights).terms(logits, labels)
    assert torch.equal(given, weights[labels])
    expected = (losses * given).sum() / given.sum()
    assert torch.allclose(replace(loss, class_weights=weights)(logits, labels), expected)
    plain = torch.stack([loss(logits[[i]], labels[[i]]) for i in range(len(labels))])
    assert torch.allclose(losses, plain)


def test_class_weights_are_torchs_for_cross_entropy():
    logits, labels = _batch()
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.1])
    ours = Loss(class_weights=weights)(logits, labels)
    assert torch.allclose(ours, F.cross_entropy(logits, labels, weight=weights))


def test_class_balance_is_the_papers_equation():
    """Class 0 has 4 samples, class 1 one, and the others are not there."""
    labels, beta = torch.tensor([0, 0, 1, 0, 0]), 0.9
    raw = [(1 - beta) / (1 - beta**4), (1 - beta) / (1 - beta)]
    expected = [2 * raw[0] / sum(raw), 2 * raw[1] / sum(raw), 1, 1, 1]
    assert class_weights(labels, CLASSES, beta).tolist() == pytest.approx(expected)
    balanced = make_loss(replace(TRAINING, class_balance=beta), labels)
    assert balanced.class_weights.tolist() == pytest.approx(expected)
    assert make_loss(replace(TRAINING, class_balance=beta), None).class_weights is None


def test_class_balance_goes_from_equal_weights_to_inverse_frequency():
    labels = torch.tensor([0, 0, 0, 1])
    assert class_weights(labels, 2, 0.0).tolist() == [1, 1]
    assert class_weights(labels, 2, 1 - 1e-9).tolist() == pytest.approx([0.5, 1.5], rel=1e-4)


@kinds
def test_every_loss_can_be_batched_over_clients_with_weights_of_their_own(loss):
    parts = [_batch(6, seed) for seed in range(3)]
    logits, labels = (torch.stack(tensors) for tensors in zip(*parts, strict=True))
    logits = logits.masked_fill(torch.tensor([False, False, True, False, False]), HIDDEN)
    labels = torch.where(labels == 2, 1, labels)
    weights = torch.rand(3, CLASSES) + 0.1

    def of_one(logits, labels, weights):
        return replace(loss, class_weights=weights)(logits, labels)

    batched = torch.func.vmap(of_one)(logits, labels, weights)
    alone = torch.stack([of_one(*each) for each in zip(logits, labels, weights, strict=True)])
    assert torch.allclose(batched, alone)


def test_mse_takes_real_targets_of_one_or_more_numbers():
    outputs, targets = torch.randn(4, 1), torch.randn(4)
    assert torch.allclose(Loss("mse")(outputs, targets), F.mse_loss(outputs.squeeze(1), targets))
    outputs, targets = torch.randn(4, 3), torch.randn(4, 3)
    losses, weights = Loss("mse").terms(outputs, targets)
    assert torch.allclose(losses, ((outputs - targets) ** 2).mean(1))
    assert weights.tolist() == [1] * 4
    assert make_loss(replace(TRAINING, loss="mse"), targets).kind == "mse"


@kinds
def test_confident_and_wrong_is_finite(loss):
    logits = torch.tensor([[1e3, -1e3, 0.0, 0.0, 0.0]])
    assert math.isfinite(loss(logits, torch.tensor([1])))
