"""A chain's passes against autograd of the plain model, client by client."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedlearn.models.char_lstm import CharLSTM
from fedlearn.models.cnn import SmallCNN
from fedlearn.models.lenet import LeNet5
from fedlearn.models.mlp import MLP
from fedlearn.models.reddi_cnn import ReddiCNN
from fedlearn.models.resnet import resnet18
from fedlearn.seeding import borrowed_global_rng
from strategies.continual.functional.chain import CACHED, Chain
from strategies.continual.functional.trees import Tree

Shape = tuple[int, ...]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


class Functional(nn.Module):
    """Calls functions and methods in place of layers, and one activation twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.act = nn.Tanh()
        self.hidden = nn.Linear(64, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.conv(x)), 2, stride=2)
        x = F.avg_pool2d(F.relu(x, inplace=True), 2, stride=1, padding=1)
        x = F.dropout(F.leaky_relu(x, 0.2), 0.0, self.training)
        return self.head(F.gelu(self.act(self.hidden(torch.flatten(x, 1))), approximate="tanh"))


def images() -> nn.Module:
    """Every layer on images, in ways in which models seldom have them."""
    return nn.Sequential(
        nn.Sigmoid(),
        nn.Conv2d(4, 8, 3, stride=(2, 1), padding=(1, 0), groups=2, bias=False),
        nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
        nn.GELU(),
        nn.Sequential(nn.Conv2d(8, 6, (1, 3), dilation=(1, 2)), nn.Identity(), nn.Dropout(0.0)),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.GroupNorm(2, 6, affine=False),
        nn.LeakyReLU(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Tanh(),
        nn.Linear(6, 5, bias=False),
        nn.ReLU(),
    )


def pools() -> nn.Module:
    """Begins and ends with what has no parameters."""
    return nn.Sequential(
        nn.MaxPool2d(2, dilation=2),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.Flatten(),
        nn.Linear(3, 8),
        nn.GroupNorm(2, 8),
        nn.GELU("tanh"),
        nn.Flatten(),
    )


def rectified() -> nn.Module:
    """Activations on what may not be overwritten: the inputs, and each other's outputs."""
    return nn.Sequential(
        nn.Flatten(),
        nn.ReLU(),
        nn.Tanh(),
        nn.Linear(6, 5),
        nn.Sigmoid(),
        nn.ReLU(),
        nn.LeakyReLU(0.3),
        nn.Linear(5, 3),
    )


def falling() -> nn.Module:
    """Maxima of what does not only rise, which are not what maxima become."""
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.GELU(), nn.MaxPool2d(2), nn.Flatten())


MODELS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "logistic": (lambda: MLP(input_shape=(2, 3), num_classes=4, hidden_sizes=()), (2, 3)),
    "relu": (lambda: MLP(input_shape=(7,), num_classes=3, hidden_sizes=(5, 6)), (7,)),
    **{
        act: (
            lambda act=act: MLP(
                input_shape=(7,), num_classes=3, hidden_sizes=(5, 6, 4), activation=act
            ),
            (7,),
        )
        for act in ("leaky_relu", "gelu", "tanh")
    },
    "cnn": (lambda: SmallCNN(input_shape=(1, 8, 8), num_classes=4, widths=(4, 6)), (1, 8, 8)),
    "cnn_group": (
        lambda: SmallCNN(input_shape=(3, 8, 8), num_classes=4, widths=(8, 16), norm="group"),
        (3, 8, 8),
    ),
    "lenet": (
        lambda: LeNet5(input_shape=(2, 12, 13), num_classes=4, pooling="average"),
        (2, 12, 13),
    ),
    "reddi_cnn": (lambda: ReddiCNN(input_shape=(3, 6, 7), num_classes=4), (3, 6, 7)),
    "images": (images, (4, 9, 8)),
    "pools": (pools, (3, 7, 7)),
    "rectified": (rectified, (2, 3)),
    "falling": (falling, (1, 7, 7)),
    "functional": (Functional, (2, 6, 6)),
}


def built(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Shape]:
    build, shape = MODELS[name]
    with borrowed_global_rng(0):
        return build().to(dtype), shape


def drawn(generator: torch.Generator, like: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like)


def clients(model: nn.Module, count: int, generator: torch.Generator) -> Tree:
    """Return stacked parameters of clients, each near the model's but its own."""
    stacked = {}
    for name, each in model.named_parameters():
        noise = drawn(generator, each.dtype, count, *each.shape)
        stacked[name] = each.detach() + 0.1 * noise * each.requires_grad
    return stacked


def chain_of(model: nn.Module, together: bool | None = None) -> Chain:
    chain = Chain.of(model, together)
    assert isinstance(chain, Chain), chain
    return chain


def expected(model: nn.Module, params: Tree, x: Tensor, slope: Tensor) -> tuple[Tensor, Tree]:
    """Return outputs and gradients of autograd, one client after another."""
    outputs, gradients = [], []
    for client, own_x in enumerate(x):
        leaves = {
            name: each[client].clone().requires_grad_()
            for name, each in params.items()
            if model.get_parameter(name).requires_grad
        }
        own = {name: each[client].clone() for name, each in params.items()} | leaves
        out = functional_call(model, own, (own_x.clone(),))
        found = torch.autograd.grad(out, tuple(leaves.values()), slope[client])
        outputs.append(out.detach())
        gradients.append(dict(zip(leaves, found, strict=True)))
    return torch.stack(outputs), {
        name: torch.stack([each[name] for each in gradients]) for name in gradients[0]
    }


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Assert that two tensors are the same but for rounding, relative to the norm."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    distance = (ours - theirs).norm() / max(float(theirs.norm()), 1e-3)
    assert distance <= TOLERANCE[ours.dtype], float(distance)


def agree(
    model: nn.Module, shape: Shape, count: int, batch: int, seed: int, together: bool | None
) -> None:
    """Assert that all passes are autograd's, and that they modify nothing else."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)
    chain = chain_of(model, together)
    longer = clients(model, count + 2, generator)
    params = {name: each[:count] for name, each in longer.items()}  # the first of a longer stack
    x = drawn(generator, dtype, count, batch, *shape)
    slope = drawn(generator, dtype, count, *model(x[0].clone()).shape)
    before = [each.clone() for each in (*longer.values(), x, slope)]
    model_before = {name: each.clone() for name, each in model.state_dict().items()}
    outputs, tape = chain.forward(params, x)
    gradient = chain.gradient(params, tape, slope)

    for ours, was in zip((*longer.values(), x, slope), before, strict=True):
        assert torch.equal(ours, was)
    for name, was in model_before.items():
        assert torch.equal(model.state_dict()[name], was)
    their_outputs, their_gradient = expected(model, params, x, slope)
    assert_close(outputs, their_outputs)
    assert_close(chain.outputs(params, x), their_outputs)
    assert gradient.keys() == their_gradient.keys() == set(chain.trained)
    for name in gradient:
        assert_close(gradient[name], their_gradient[name])

    chain.descend(params, tape, slope, 0.1)  # the tape serves twice
    for (name, each), was in zip(longer.items(), before, strict=False):
        if name in gradient:
            assert_close(each[:count], was[:count] - 0.1 * gradient[name])
        else:
            assert torch.equal(each, was)
        assert torch.equal(each[count:], was[count:])
    assert torch.equal(x, before[-2])
    assert torch.equal(slope, before[-1])


@pytest.mark.parametrize("together", [None, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_passes_are_autograds(name: str, dtype: torch.dtype, together: bool | None) -> None:
    model, shape = built(name, dtype)
    for count, batch in ((1, 3), (3, 2), (2, 1)):
        agree(model, shape, count, batch, seed=count, together=together)


ACTIVATIONS = st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 9), ACTIVATIONS, st.booleans()), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2**20),
    st.data(),
)
def test_any_stack_of_linear_layers(
    layers: list[tuple[int, type[nn.Module], bool]],
    count: int,
    batch: int,
    seed: int,
    data: st.DataObject,
) -> None:
    width, modules = 6, list[nn.Module]()
    with borrowed_global_rng(seed):
        for size, act, bias in layers:
            modules += [nn.Linear(width, size, bias=bias), act()]
            width = size
        model = nn.Sequential(*modules[: data.draw(st.sampled_from([-1, len(modules)]))]).double()
    parameters = list(model.parameters())
    for parameter in parameters[1:]:
        parameter.requires_grad_(data.draw(st.booleans()))
    trained = any(parameter.requires_grad for parameter in parameters[1:])
    parameters[0].requires_grad_(not trained or data.draw(st.booleans()))
    agree(model, (6,), count, batch, seed, None)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
)
def test_any_convolution(
    width: int,
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int,
    dilation: int,
    bias: bool,
    together: bool,
    count: int,
) -> None:
    with borrowed_global_rng(width):
        first = nn.Conv2d(3, 2 * groups, 2)
        second = nn.Conv2d(
            2 * groups,
            groups * width,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        model = nn.Sequential(first, nn.ReLU(), second, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten())
    agree(model.double(), (3, 9, 8), count, 2, count, together)


@pytest.mark.parametrize("together", [None, True])
@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("relu", "features.1"),
        ("relu", "classifier"),
        ("tanh", "features.3.bias"),
        ("cnn", "features"),
        ("cnn", "features.0.weight"),
        ("cnn_group", "features.1.bias"),
        ("cnn_group", "features.4"),
    ],
)
def test_frozen_parameters_have_no_gradient_and_need_not_be_given(
    name: str, frozen: str, together: bool | None
) -> None:
    model, shape = built(name)
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(not path.startswith(frozen))
    agree(model, shape, 3, 2, 0, together)
    chain, generator = chain_of(model, together), torch.Generator().manual_seed(1)
    params = clients(model, 3, generator)
    x = drawn(generator, torch.float64, 3, 2, *shape)
    assert not any(path.startswith(frozen) for path in chain.trained)
    trained = {path: params[path] for path in chain.trained}
    assert_close(chain.outputs(trained, x), chain.outputs(params, x))
    moved = {path: each + 1 for path, each in params.items()}  # those given have precedence
    assert_close(chain.outputs(moved, x), expected(model, moved, x, chain.outputs(moved, x))[0])


def test_below_the_lowest_trained_layer_nothing_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, shape = built("relu")
    for parameter in model.features.parameters():
        parameter.requires_grad_(False)
    chain = chain_of(model)
    params = clients(model, 2, torch.Generator().manual_seed(0))
    out, tape = chain.forward(params, torch.ones(2, 3, *shape, dtype=torch.float64))

    def unexpected(*_: object) -> None:
        raise AssertionError

    for layer in chain.layers:
        monkeypatch.setattr(layer, "below", unexpected)
    assert set(chain.gradient(params, tape, out)) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("name", ["relu", "cnn_group"])
def test_a_pull_comes_right_before_descent_and_after_the_backward_pass(name: str) -> None:
    model, shape = built(name)
    chain, generator = chain_of(model), torch.Generator().manual_seed(0)
    params = clients(model, 3, generator)
    before = {path: each.clone() for path, each in params.items()}
    x = drawn(generator, torch.float64, 3, 2, *shape)
    outputs, tape = chain.forward(params, x)
    gradient = chain.gradient(params, tape, outputs)
    pulled: list[tuple[str, int]] = []

    def pull(path: str, which: range) -> None:
        pulled.extend((path, client) for client in which)
        part = slice(which.start, which.stop)
        assert torch.equal(params[path][part], before[path][part])
        params[path][part].mul_(0.5)

    chain.descend(params, tape, outputs, 0.1, pull)
    assert sorted(pulled) == sorted((path, client) for path in chain.trained for client in range(3))
    for path, each in params.items():
        assert_close(each, 0.5 * before[path] - 0.1 * gradient[path])


@pytest.mark.parametrize("name", MODELS)
def test_parameters_that_are_alike_give_what_stacked_ones_give(name: str) -> None:
    model, shape = built(name)
    chain, generator = chain_of(model), torch.Generator().manual_seed(0)
    one = clients(model, 1, generator)
    x = drawn(generator, torch.float64, 3, 2, *shape)
    after, outputs = [], []
    for alike in (False, True):
        params = {path: each.repeat(3, *[1] * (each.dim() - 1)) for path, each in one.items()}
        out, tape = chain.forward(params, x, alike)
        chain.descend(params, tape, out, 0.1, alike=alike)
        outputs.append(out)
        after.append(params)
    assert_close(outputs[1], outputs[0])
    for path, each in after[0].items():
        assert_close(after[1][path], each)
    assert any(not torch.equal(each[0], each[1]) for each in after[0].values())


@pytest.mark.parametrize("name", ["gelu", "cnn"])
def test_tapes_of_other_shapes_do_not_disturb_each_other(name: str) -> None:
    model, shape = built(name)
    chain, generator = chain_of(model), torch.Generator().manual_seed(0)
    parts = []
    for count, batch in ((2, 3), (3, 1), (2, 3)):
        params = clients(model, count, generator)
        x = drawn(generator, torch.float64, count, batch, *shape)
        parts.append((params, x, *chain.forward(params, x)))
    found = [chain.gradient(params, tape, out) for params, _, out, tape in parts]
    for (params, x, out, _), gradient in zip(parts, found, strict=True):
        outputs, theirs = expected(model, params, x, out)
        assert_close(out, outputs)
        for path, each in theirs.items():
            assert_close(gradient[path], each)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Reusing(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.a(x)))


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.sum() > 0 else self.b(x)


class TwoInputs(Residual):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + y


class Optional(Residual):
    def forward(self, x: Tensor, skip: bool | None = None) -> Tensor:
        return self.a(x) if skip is None else self.b(x)


class Squaring(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).square()


class Halves(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x), 0.5, self.training))


class OwnLinear(nn.Linear):
    pass


def tied() -> nn.Module:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    return nn.Sequential(one, other)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    return model


def normalised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Residual, "its forward pass is not one layer after another: at add"),
        (Reusing, "a (Linear) is used more than once"),
        (tied, "1 (Linear) is used more than once"),
        (Branching, "its forward pass cannot be traced: "),
        (TwoInputs, "its forward pass takes x, y"),
        (Optional, "its forward pass takes x, skip"),
        (Squaring, "square is a call that chains do not have"),
        (Halves, "dropout (Dropout) draws random numbers; p=0 would not"),
        (hooked, "0 (Linear) has hooks"),
        (normalised, "0 ("),
        (lambda: nn.Sequential(OwnLinear(4, 4)), "its forward pass is not one layer after another"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2)), "1 (Dropout) draws random"),
        (lambda: MLP(input_shape=(4,), num_classes=2, dropout=0.1), "features.3 (Dropout) draws"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4)), "0 (BatchNorm1d) is not supported"),
        (lambda: nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 2)), "0 (LSTM) is not supported"),
        (lambda: nn.Sequential(nn.LeakyReLU(-0.1)), "0 (LeakyReLU) is not supported"),
        (lambda: nn.Sequential(nn.Flatten(0)), "0 (Flatten) keeps other axes"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), "0 (Conv2d) pads"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
            "0 (Conv2d) pads",
        ),
        (lambda: nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), "0 (MaxPool2d) has ceil_mode"),
        (lambda: nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), "0 (AvgPool2d) has ceil_mode"),
        (lambda: nn.Sequential(nn.MaxPool2d(2, return_indices=True)), "0 (MaxPool2d) returns"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2)), "0 (AdaptiveAvgPool2d) leaves more"),
        (lambda: CharLSTM(input_shape=(5,), num_classes=4, hidden_size=4), ""),
        (lambda: resnet18(input_shape=(3, 8, 8), num_classes=4), "its forward pass is not"),
    ],
)
def test_what_is_no_chain_says_why_in_a_line(build: Callable[[], nn.Module], why: str) -> None:
    reason = Chain.of(build())
    assert isinstance(reason, str)
    assert reason.startswith(why)
    assert reason
    assert "\n" not in reason


def test_finding_out_leaves_model_and_global_generator_alone() -> None:
    model, _ = built("cnn")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    chain_of(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_chunks_fit_the_cache_and_convolutions_run_alone_on_a_cpu() -> None:
    chain = chain_of(MLP(input_shape=(784,), num_classes=10, hidden_sizes=(200, 200)))
    assert chain.best_chunk(10, torch.float32) == 9
    assert chain.best_chunk(10, torch.float64) == 4
    assert chain.best_chunk(10**6, torch.float32) == 1
    numbers = 64 * 32 + 32 + 32 * 10 + 10 + 10 * (64 + 32 + 32 + 10)
    small = chain_of(MLP(input_shape=(64,), num_classes=10, hidden_sizes=(32,)))
    assert small.best_chunk(10, torch.float32) == CACHED // (4 * numbers)
    assert chain_of(built("cnn")[0]).best_chunk(10, torch.float32) == 1


def test_chunks_fit_the_memory_of_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (16 * 2**20, 2**30))
    small = chain_of(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(126, 8)))
    bytes_of_one = 4 * 4 * (2 + 126 * 8 + 8)
    chunk = small.best_chunk(10, torch.float32, torch.device("cuda"))
    assert chunk == 4 * 2**20 // bytes_of_one
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 2**30))
    assert small.best_chunk(10, torch.float32, torch.device("cuda")) == 1
