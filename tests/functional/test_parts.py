"""What twins are made of: optimisers, springs, clipping, and the errors of their settings."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from lone_client import TRAINING
from torch import Tensor, nn
from twins import NODES, OPTIMIZERS

from strategies.continual.functional.naive import naive
from strategies.continual.functional.optimizers import optimizer_of
from strategies.continual.functional.springs import Spring, moved, stretch
from strategies.continual.functional.trees import clipped, norm


def noise(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_takes_torchs_steps(name: str, maximize: bool) -> None:
    build = partial(OPTIMIZERS[name], maximize=maximize)
    parameters = {key: nn.Parameter(noise(at, 4, 3)) for at, key in enumerate("abc")}
    theirs, ours = build(parameters.values()), optimizer_of(build)
    params = {key: each.detach().clone() for key, each in parameters.items()}
    before = {key: each.clone() for key, each in params.items()}
    slots = ours.initial(params)
    for step in range(6):
        gradient = {key: noise(10 * step + at, 4, 3) for at, key in enumerate("ab")}
        for key, each in gradient.items():  # c has no gradient, and stays
            parameters[key].grad = each.clone()
        theirs.step()
        kept = {key: each.clone() for key, each in params.items()}
        after, slots = ours.update(params, gradient, slots)
        assert all(torch.equal(params[key], kept[key]) for key in kept)
        params = after
        for key, parameter in parameters.items():
            assert torch.allclose(params[key], parameter.detach(), rtol=1e-13, atol=1e-15)
    assert torch.equal(params["c"], before["c"])


def test_a_factor_scales_the_rate() -> None:
    assert optimizer_of(OPTIMIZERS["adam"]).scaled(0.5).lr == pytest.approx(1e-3)


class Mine(torch.optim.SGD):
    """A subclass may do anything."""


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(torch.optim.NAdam, lr=0.1), "optimizer=NAdam: engine=functional has no NAdam; it"),
        (
            partial(torch.optim.ASGD, lr=0.1),
            "optimizer=ASGD: engine=functional has no ASGD; it has",
        ),
        (partial(Mine, lr=0.1), "optimizer=Mine: engine=functional has no Mine; it has Adagrad, "),
    ],
)
def test_other_optimisers_are_refused_in_one_line(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match="engine=functional has no") as caught:
        naive(training=replace(TRAINING, optimizer=build))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused() -> None:
    def build(params: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=0.1)
        optimizer.defaults["lookahead"] = 5
        return optimizer

    with pytest.raises(ValueError, match=r"optimizer\.lookahead=5: engine=functional has no"):
        optimizer_of(build)


def test_how_torch_computes_is_no_option() -> None:
    assert optimizer_of(partial(torch.optim.Adam, foreach=True)) == optimizer_of(torch.optim.Adam)


def energy(springs: list[Spring], theta: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return value and gradient of the penalties, by autograd, as the papers write them."""
    leaves = {key: each.clone().requires_grad_() for key, each in theta.items()}
    total = torch.zeros((), dtype=torch.float64)
    for spring in springs:
        for key, anchor in spring.anchor.items():
            k = 1.0 if spring.stiffness is None else spring.stiffness[key]
            total = total + spring.strength * (k * (leaves[key] - anchor) ** 2).sum()
    return total.detach(), dict(
        zip(leaves, torch.autograd.grad(total, tuple(leaves.values())), strict=True)
    )


def test_springs_pull_with_their_gradient() -> None:
    theta = {"a": noise(0, 3, 2), "b": noise(1, 4)}
    springs = [
        Spring(0.3, {"a": noise(2, 3, 2), "b": noise(3, 4)}),
        Spring(2.0, {"b": noise(4, 4)}, {"b": noise(5, 4) ** 2}),
    ]
    free = {"a": noise(6, 3, 2)}  # b has no gradient of its own
    loss, gradient = stretch(springs, theta, torch.tensor(1.5, dtype=torch.float64), free)
    value, pull = energy(springs, theta)
    assert float(loss) == pytest.approx(1.5 + float(value), rel=1e-12)
    assert torch.allclose(gradient["a"], free["a"] + pull["a"], rtol=1e-12)
    assert torch.allclose(gradient["b"], pull["b"], rtol=1e-12)
    assert free.keys() == {"a"}


def test_many_springs_are_one_wherever_it_is_looked_at_from() -> None:
    anchors = [{"a": noise(seed, 5)} for seed in range(4)]
    springs = [
        Spring(0.7, anchor, {"a": noise(10 + seed, 5) ** 2}) for seed, anchor in enumerate(anchors)
    ]
    one = springs[0]
    for spring in springs[1:]:
        one = moved(one, spring.anchor)
        assert one.stiffness is not None
        assert spring.stiffness is not None
        one = one._replace(stiffness={"a": one.stiffness["a"] + spring.stiffness["a"]})
    for seed in range(20, 25):
        theta = {"a": noise(seed, 5)}
        value, pull = energy(springs, theta)
        zero = torch.zeros((), dtype=torch.float64)
        loss, gradient = stretch([one], theta, zero, {"a": torch.zeros(5, dtype=torch.float64)})
        assert float(loss) == pytest.approx(float(value), rel=1e-12)
        assert torch.allclose(gradient["a"], pull["a"], rtol=1e-10)


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 100.0])
def test_clipping_is_torchs(max_norm: float) -> None:
    tree = {"a": noise(0, 3, 2), "b": noise(1, 4)}
    parameters = [nn.Parameter(torch.zeros_like(each)) for each in tree.values()]
    for parameter, each in zip(parameters, tree.values(), strict=True):
        parameter.grad = each.clone()
    length = nn.utils.clip_grad_norm_(parameters, max_norm)
    assert float(norm(tree)) == pytest.approx(float(length), rel=1e-12)
    for parameter, each in zip(
        parameters, clipped(tree, norm(tree), max_norm).values(), strict=True
    ):
        assert torch.allclose(parameter.grad, each, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ewc", {"ewc_lambda": -1}),
        ("ewc", {"mode": "both"}),
        ("ewc", {"decay_factor": 0.5}),
        ("ewc", {"anchor": "mean"}),
        ("ewc", {"mode": "online"}),
        ("ewc", {"mode": "online", "decay_factor": 1.5}),
        ("si", {"si_lambda": math.inf}),
        ("si", {"damping": 0}),
        ("si", {"max_importance": 0}),
        ("mas", {"lambda_reg": -1}),
        ("mas", {"alpha": 2}),
        ("lwf", {"alpha": -1}),
        ("lwf", {"temperature": 0}),
        ("replay", {"policy": "newest"}),
        ("replay", {"memory_per_client": 0}),
        ("replay", {"memory_per_client": None}),
        ("replay", {"memory_per_class": 3}),
        ("replay", {"memory_batch_size": 0}),
        ("replay", {"anchor": "local"}),
        ("replay", {"policy": "class_balanced", "memory_per_client": None, "memory_per_class": 0}),
        ("der_plus_plus", {"memory_per_client": 0}),
        ("der_plus_plus", {"alpha": -1}),
        ("der_plus_plus", {"beta": -1}),
        ("der_plus_plus", {"memory_batch_size": 0}),
        ("agem", {"memory_per_client": 0}),
        ("agem", {"sample_size": 0}),
        ("ewc_replay", {"ewc_lambda": -1}),
        ("ewc_replay", {"decay_factor": 0.5}),
        ("ewc_replay", {"mode": "online"}),
        ("ewc_replay", {"memory_per_client": 0}),
        ("ewc_replay", {"memory_batch_size": 0}),
        ("er_ace", {"memory_per_client": 0}),
        ("er_ace", {"memory_batch_size": 0}),
    ],
)
def test_bad_settings_are_refused_in_the_same_words(name: str, settings: dict[str, Any]) -> None:
    messages = []
    for key in ("_target_", "functional"):
        with pytest.raises(ValueError, match=r"^continual\.") as caught:
            get_object(NODES[name][key])(training=TRAINING, **settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("policy", ["herding", "closest_to_center"])
def test_policies_that_look_at_the_model_are_refused(policy: str) -> None:
    factory = get_object(NODES["replay"]["functional"])
    with pytest.raises(ValueError, match=f"continual.policy={policy}: engine=functional has no"):
        factory(training=TRAINING, policy=policy, anchor="local")
