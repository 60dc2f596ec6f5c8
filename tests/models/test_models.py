"""Every model: shapes, sizes by formula, gradients, seeded initialisation, refusals."""

import hashlib
from collections.abc import Callable
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedlearn.models.cnn import SmallCNN
from fedlearn.models.lenet import LeNet5
from fedlearn.models.mlp import MLP
from fedlearn.models.reddi_cnn import ReddiCNN
from fedlearn.models.resnet import resnet18
from fedlearn.models.torchvision_model import torchvision_model
from fedlearn.seeding import borrowed_global_rng

DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
BUILDERS: list[tuple[Callable[..., nn.Module], tuple[int, ...]]] = [
    (MLP, (64,)),
    (MLP, DIGITS),
    (MLP, CIFAR),
    (SmallCNN, DIGITS),
    (SmallCNN, MNIST),
    (SmallCNN, CIFAR),
    (LeNet5, (2, 12, 17)),
    (LeNet5, MNIST),
    (LeNet5, CIFAR),
    (ReddiCNN, (2, 6, 9)),
    (ReddiCNN, MNIST),
    (ReddiCNN, CIFAR),
    (resnet18, DIGITS),
    (resnet18, CIFAR),
    (torchvision_model, CIFAR),
    (torchvision_model, (1, 32, 48)),
]
each_model = pytest.mark.parametrize(
    ("build", "shape"), BUILDERS, ids=lambda value: getattr(value, "__name__", str(value))
)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def digest(model: nn.Module) -> str:
    return hashlib.sha256(
        b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    ).hexdigest()


@each_model
def test_logits_have_one_row_an_input_and_one_column_a_class(build, shape):
    model = build(input_shape=shape, num_classes=7).eval()
    assert model(draw(3, *shape)).shape == (3, 7)
    assert model(draw(1, *shape)).shape == (1, 7)


@each_model
def test_the_loss_reaches_every_parameter(build, shape):
    with borrowed_global_rng(0):
        model = build(input_shape=shape, num_classes=4)
        # Dropout and rectifiers may silence a unit for one batch; not for 32 different inputs.
        F.cross_entropy(model(draw(32, *shape)), torch.arange(32) % 4).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@each_model
def test_initial_weights_depend_on_the_borrowed_seed_alone(build, shape):
    def built(seed: int) -> str:
        with borrowed_global_rng(seed):
            return digest(build(input_shape=shape, num_classes=4))

    assert built(1) == built(1) != built(2)


@pytest.mark.parametrize("build", [MLP, SmallCNN, LeNet5, ReddiCNN])
def test_features_then_classifier_is_the_model(build):
    model = build(input_shape=MNIST, num_classes=5)
    x = draw(2, *MNIST)
    assert isinstance(model.classifier, nn.Linear)
    torch.testing.assert_close(model.classifier(model.features(x)), model(x))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.lists(st.integers(1, 12), max_size=3),
    st.integers(1, 11),
    st.booleans(),
)
def test_mlp_size_by_formula(shape, hidden, num_classes, batch_norm):
    model = MLP(
        input_shape=tuple(shape),
        num_classes=num_classes,
        hidden_sizes=hidden,
        batch_norm=batch_norm,
    )
    sizes = [prod(shape), *hidden, num_classes]
    by_formula = sum(m * n + n for m, n in pairwise(sizes)) + 2 * sum(hidden) * batch_norm
    assert count(model) == by_formula


def test_sizes_known_from_the_papers():
    mcmahan = SmallCNN(input_shape=MNIST, num_classes=10, kernel_size=5, hidden_size=512)
    assert count(mcmahan) == 1_663_370
    assert count(LeNet5(input_shape=MNIST, num_classes=10)) == 61_706
    assert count(LeNet5(input_shape=(1, 32, 32), num_classes=10)) == 61_706
    assert count(ReddiCNN(input_shape=MNIST, num_classes=62)) == 1_206_590
    assert count(ReddiCNN(input_shape=CIFAR, num_classes=10)) == 1_626_442
    imagenet = resnet18(input_shape=(3, 224, 224), num_classes=1000, stem="imagenet", norm="batch")
    assert count(imagenet) == 11_689_512


def test_mlp_is_what_its_arguments_say():
    model = MLP(
        input_shape=(3,), num_classes=2, hidden_sizes=(4, 5), activation="tanh", dropout=0.5
    )
    kinds = [type(module) for module in model.features]
    assert kinds == [nn.Flatten, *[nn.Linear, nn.Tanh, nn.Dropout] * 2]
    assert all(module.p == 0.5 for module in model.features if isinstance(module, nn.Dropout))


def test_reddi_cnn_drops_the_papers_shares_where_asked():
    plain, dropping = (
        ReddiCNN(input_shape=MNIST, num_classes=62, dropout=dropout) for dropout in (False, True)
    )
    rates = [module.p for module in dropping.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.25, 0.5]
    kinds = [type(module) for module in dropping.features if not isinstance(module, nn.Dropout)]
    assert kinds == [type(module) for module in plain.features]


def test_resnet_with_imagenet_stem_is_torchvisions():
    from torchvision.models import resnet18 as reference

    with borrowed_global_rng(3):
        ours = resnet18(input_shape=(3, 64, 64), num_classes=6, stem="imagenet", norm="batch")
    with borrowed_global_rng(3):
        theirs = reference(weights=None, num_classes=6)
    x = draw(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_resnet_cifar_stem_keeps_the_resolution():
    model = resnet18(input_shape=CIFAR, num_classes=6)
    stem = nn.Sequential(model.conv1, model.maxpool)
    assert stem(draw(1, *CIFAR)).shape == (1, 64, 32, 32)


@pytest.mark.parametrize("build", [resnet18, SmallCNN])
def test_group_normalisation_keeps_no_buffers_and_does_not_mix_samples(build):
    with borrowed_global_rng(0):
        model = build(input_shape=CIFAR, num_classes=3, norm="group")
    assert not list(model.buffers())
    assert any(isinstance(module, nn.GroupNorm) for module in model.modules())
    x = draw(4, *CIFAR)
    torch.testing.assert_close(model.train()(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


def test_a_width_that_groups_do_not_divide_is_one_group():
    model = SmallCNN(input_shape=CIFAR, num_classes=3, norm="group", widths=(16, 12))
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(2, 16), (1, 12)]


def test_batch_normalisation_does_keep_buffers():
    assert list(resnet18(input_shape=CIFAR, num_classes=3, norm="batch").buffers())
    assert list(SmallCNN(input_shape=CIFAR, num_classes=3, norm="batch").buffers())
    assert list(MLP(input_shape=CIFAR, num_classes=3, batch_norm=True).buffers())


@pytest.mark.parametrize(
    "architecture",
    ["squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "googlenet", "resnet18"],
)
def test_torchvision_architectures_take_grey_images(architecture):
    with borrowed_global_rng(0):
        model = torchvision_model(input_shape=(1, 64, 64), num_classes=3, architecture=architecture)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 1
    assert model.training
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert model.train()(draw(2, 1, 64, 64)).shape == (2, 3)


def test_torchvision_head_is_resized_and_the_rest_is_kept():
    few, many = (
        torchvision_model(input_shape=CIFAR, num_classes=n, architecture="squeezenet1_1")
        for n in (3, 30)
    )
    assert count(many) - count(few) == 27 * (512 + 1)


DIGIT = {"input_shape": DIGITS, "num_classes": 10}


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (MLP, {**DIGIT, "hidden_sizes": [5, 0]}, r"model.hidden_sizes=\[5, 0\]: .*at least 1"),
        (MLP, {**DIGIT, "dropout": 1.0}, r"model.dropout=1.0: must be in \[0, 1\)"),
        (MLP, {**DIGIT, "activation": "relux"}, "model.activation=relux: must be one of relu"),
        (MLP, {**DIGIT, "num_classes": 0}, "num_classes=0"),
        (SmallCNN, {**DIGIT, "widths": []}, r"model.widths=\[\]"),
        (SmallCNN, {**DIGIT, "widths": [4] * 4}, "4 blocks halve 8x8 images to nothing; at most 3"),
        (SmallCNN, {**DIGIT, "kernel_size": 4}, "model.kernel_size=4: must be odd"),
        (SmallCNN, {**DIGIT, "hidden_size": 0}, "model.hidden_size=0"),
        (SmallCNN, {**DIGIT, "norm": "layer"}, "model.norm=layer: must be one of none"),
        (SmallCNN, {**DIGIT, "input_shape": (64,)}, "model=cnn: needs images .* not 64"),
        (SmallCNN, {**DIGIT, "num_classes": 0}, "num_classes=0"),
        (LeNet5, DIGIT, "model=lenet: 8x8 images are too small .at least 12x12.*model=cnn"),
        (LeNet5, {**DIGIT, "input_shape": (64,)}, "model=lenet: needs images"),
        (LeNet5, {"input_shape": MNIST, "num_classes": 0}, "num_classes=0"),
        (LeNet5, {"input_shape": MNIST, "num_classes": 2, "activation": "no"}, "model.activation"),
        (LeNet5, {"input_shape": MNIST, "num_classes": 2, "pooling": "no"}, "model.pooling=no"),
        (
            ReddiCNN,
            {**DIGIT, "input_shape": (1, 5, 8)},
            "model=reddi_cnn: 5x8 images are too small",
        ),
        (ReddiCNN, {**DIGIT, "input_shape": (64,)}, "model=reddi_cnn: needs images .* not 64"),
        (ReddiCNN, {**DIGIT, "num_classes": 0}, "num_classes=0"),
        (resnet18, {**DIGIT, "num_groups": 48}, "model.num_groups=48: must divide 64"),
        (resnet18, {**DIGIT, "stem": "mnist"}, "model.stem=mnist"),
        (resnet18, {**DIGIT, "norm": "layer"}, "model.norm=layer"),
        (resnet18, {**DIGIT, "input_shape": (64,)}, "model=resnet18: needs images"),
        (resnet18, {**DIGIT, "num_classes": 0}, "num_classes=0"),
        (torchvision_model, {**DIGIT, "architecture": "resnet19"}, "resnet19.*did you mean resnet"),
        (torchvision_model, {**DIGIT, "architecture": "?"}, "unknown to torchvision; choices: ale"),
        (torchvision_model, {**DIGIT, "architecture": "alexnet"}, "alexnet: cannot take 1x8x8"),
        (torchvision_model, {**DIGIT, "input_shape": (64,)}, "needs images .* not 64"),
        (torchvision_model, {**DIGIT, "num_classes": 0}, "num_classes=0"),
        (
            torchvision_model,
            {"input_shape": (3, 32, 64), "num_classes": 2, "architecture": "vit_b_16"},
            "vit_b_16: cannot take 3x32x64 images: it needs square images",
        ),
    ],
)
def test_bad_arguments_get_one_line(build, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)


def test_every_model_option_builds_on_images_of_cifars_size_or_on_tokens():
    """What the YAML files say is what their targets take."""
    from pathlib import Path

    import yaml
    from hydra.utils import instantiate

    options = sorted(Path(__file__, "../../../conf/model").resolve().glob("*.yaml"))
    assert len(options) >= 5
    for path in options:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# "), path.name
        x = torch.arange(8)[None] if path.stem == "char_lstm" else draw(1, *CIFAR)
        model = instantiate(yaml.safe_load(text), input_shape=tuple(x.shape[1:]), num_classes=10)
        assert model.eval()(x).shape == (1, 10)
