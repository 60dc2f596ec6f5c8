"""One client on scikit-learn's digits: streams, models, and two ways to live through them."""

import copy
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from sklearn.datasets import load_digits
from torch import nn

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, LocalTraining, Report, Samples, State, Turn
from strategies.continual.avalanche.adapter import AvalancheContinual

SGD = partial(torch.optim.SGD, lr=0.1)
TRAINING = LocalTraining(SGD, num_classes=10, num_experiences=3, input_shape=(64,))
REGRESSION_TRAINING = replace(
    TRAINING, num_classes=2, loss="mse", regression=True, max_grad_norm=1.0
)
TASK_TRAINING = replace(TRAINING, heads=tuple((2 * task, 2 * task + 1) for task in range(5)))

SMALL: dict[str, dict[str, Any]] = {
    "ewc": {"ewc_lambda": 10.0},
    "ewc_online": {"ewc_lambda": 10.0, "decay_factor": 0.9},
    "agem": {"sample_size": 10},
    "der_plus_plus": {"memory_per_client": 40},  # more than a batch
    "generative_replay": {"generator_steps": 5, "generator_hidden_size": 20},
    "lfl": {"freeze_head": False},  # the models of some tests are a head and nothing else
}
"""Settings for tests, where the YAML's do not suit so little data."""


def _choices() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((Path(__file__).parents[2] / "conf" / "continual").glob("[!_]*.yaml")):
        node = yaml.safe_load(path.read_text())
        if "refused" not in node:
            yield path.stem, node


def _factory(name: str, node: dict[str, Any]) -> Callable[..., AvalancheContinual]:
    target, extras = (
        node["_target_"],
        ("_target_", "_recursive_", "functional", "kinds", "regression", "in_step", "limits"),
    )
    settings = {key: value for key, value in node.items() if key not in extras}
    module, _, function = target.rpartition(".")
    return partial(
        getattr(importlib.import_module(module), function), **settings | SMALL.get(name, {})
    )


KINDS = {name: node.get("kinds", ["class", "task", "domain"]) for name, node in _choices()}
"""The kinds of scenario that each continual strategy can work with."""
REGRESSION = [name for name, node in _choices() if node.get("regression")]
"""Those that can work without classes."""
STRATEGIES = {name: _factory(name, node) for name, node in _choices()}
"""Every choice of conf/continual, by name."""
TWINS = [name for name, node in _choices() if "functional" in node]
"""Those with a pure-function twin."""
STATELESS = ["naive", "cwr_star", "packnet", "pnn", "cumulative", "joint"]
"""Those that keep nothing between turns."""
ONLINE: list[str] = ["mer", "la_maml", "gss"]
"""Those whose memory changes with every step, not only at an experience's end."""
KEEPING = [name for name in STRATEGIES if name not in STATELESS]
CONSOLIDATING_WEIGHTS = [name for name, node in _choices() if node.get("anchor")]

_digits = load_digits()
DIGITS = Samples(
    torch.tensor(_digits.data / 16, dtype=torch.float32), torch.tensor(_digits.target).long()
)


def split(num_experiences: int = 3, size: int | None = 70, task: bool = False) -> list[Experience]:
    """Return a stream of two new classes an experience, at most `size` samples each."""
    stream = []
    for index in range(num_experiences):
        classes = (2 * index, 2 * index + 1)
        rows = (DIGITS.y // 2 == index).nonzero().squeeze(1)[:size]
        stream.append(Experience(index, DIGITS, rows, classes, index if task else 0))
    return stream


def permuted(num_experiences: int = 3, size: int = 70) -> list[Experience]:
    """Return a stream of all classes, with the pixels permuted anew in each experience."""
    stream = []
    for index in range(num_experiences):
        pixels = torch.randperm(64, generator=torch.Generator().manual_seed(index))
        rows = torch.arange(index * size, (index + 1) * size)
        transform = partial(torch.index_select, dim=1, index=pixels)
        stream.append(Experience(index, DIGITS, rows, tuple(range(10)), 0, transform))
    return stream


def regression(num_experiences: int = 3, size: int = 70) -> list[Experience]:
    """Return a stream of real targets, two a sample, with the pixels permuted anew each time."""
    stream = permuted(num_experiences, size)
    rng = torch.Generator().manual_seed(0)
    targets = DIGITS.x @ torch.randn(64, 2, generator=rng) / 8
    targets = (targets - targets.mean(0)) / targets.std(0)
    samples = Samples(DIGITS.x, targets)
    return [replace(each, samples=samples, classes=(0, 1)) for each in stream]


def mlp(
    dropout: float = 0.0, norm: bool = False, hidden: int = 16, outputs: int = 10
) -> nn.Sequential:
    """Return a small classifier, the same at every call."""
    with borrowed_global_rng(0):
        layers: list[nn.Module] = [nn.Linear(64, hidden)]
        layers += [nn.BatchNorm1d(hidden)] if norm else []
        layers += [nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
        return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def turn_at(first_epoch: int, epochs: int = 1, previous: Experience | None = None, **more) -> Turn:
    """Return a turn of client 0."""
    return Turn(
        **{
            "run_seed": 7,
            "client_id": 0,
            "server_round": first_epoch + 1,
            "first_epoch": first_epoch,
            "epochs": epochs,
            "batch_size": 32,
            "previous": previous,
            **more,
        }
    )


def through_json(state: State) -> State:
    """Return `state` after a trip through bytes: cloned tensors and JSON values."""
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    return State(tensors, json.loads(json.dumps(state.values)))


def live(
    strategy: AvalancheContinual,
    model: nn.Module,
    stream: list[Experience],
    rounds: int = 1,
    epochs: int = 1,
    carry: Callable[[State], State] = lambda state: state,
    forget: bool = False,
    whole: list[Experience] | None = None,
    **more: Any,
) -> list[Report]:
    """Train through `stream`, `rounds` turns of `epochs` epochs in each experience.

    Args:
        carry: What happens to the state between two turns.
        forget: Whether the client comes back each time as one that nobody knows.
        whole: What `stream` is the beginning of, where more experiences are to come.
        more: Fields of the turns, e.g. ``batch_size``.
    """
    reports: list[Report] = []
    state, previous, clock = State(), None, 0
    for experience in stream:
        for at in range(rounds):
            entered = previous if at == 0 and not forget else None
            turn = turn_at(clock, epochs, entered, **more)
            lookup = (whole or stream).__getitem__
            report = strategy.train_turn(model, experience, lookup, turn, state)
            reports.append(report)
            state, clock = State() if forget else carry(report.state), clock + epochs
        previous = experience
    return reports


def persist(
    strategy: AvalancheContinual,
    model: nn.Module,
    stream: list[Experience],
    epochs: int,
    first_epochs: list[int] | None = None,
) -> Any:
    """Train through `stream` with one Avalanche object and Avalanche's own ``train()``.

    Args:
        first_epochs: The clock at each experience's start; without pauses by default.

    Returns:
        The Avalanche object.
    """
    oracle = strategy._strategy(model, lambda index: by_index[index], turn_at(0, epochs))
    oracle.plugins[-1:-1] = strategy._local_plugins(model, turn_at(0))
    by_index = {experience.index: experience for experience in stream}
    clocks = first_epochs or [epochs * place for place in range(len(stream))]
    with borrowed_global_rng(0):
        for experience, clock in zip(stream, clocks, strict=True):
            oracle._next_epoch = clock
            oracle.train(strategy._seen(experience, by_index.__getitem__), eval_streams=[])
    return oracle


def weights(model: nn.Module) -> torch.Tensor:
    """Return all parameters and buffers as one vector."""
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def gap(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference between two models."""
    return float((weights(one) - weights(other)).abs().max())


def accuracy(model: nn.Module, experiences: list[Experience]) -> float:
    """Return the mean accuracy over `experiences`."""
    model.eval()
    hits = []
    with torch.no_grad():
        for experience in experiences:
            x, y = experience.gather()
            hits.append(float((model(x).argmax(1) == y).float().mean()))
    return sum(hits) / len(hits)


def built(name: str, training: LocalTraining | None = None, **more: Any) -> AvalancheContinual:
    """Return the strategy called `name`, for the first kind of scenario that it can work with."""
    return STRATEGIES[name](training=training or training_for(name), **more)


def training_for(name: str) -> LocalTraining:
    """Return the usual training in the first kind of scenario that `name` can work with."""
    return TASK_TRAINING if KINDS[name][0] == "task" else TRAINING


def stream_for(name: str, num_experiences: int = 3, size: int | None = 70) -> list[Experience]:
    """Return a stream of the first kind of scenario that the strategy called `name` can do."""
    if KINDS[name][0] == "domain":
        return permuted(num_experiences, size or 500)
    return split(num_experiences, size, task=KINDS[name][0] == "task")


def model_for(strategy: AvalancheContinual, build: Callable[[], nn.Module] = mlp) -> nn.Module:
    """Return what `strategy` makes of a small classifier, the same at every call."""
    with borrowed_global_rng(0):
        return strategy.equip(build())


def twin(model: nn.Module) -> nn.Module:
    """Return a copy of `model`."""
    return copy.deepcopy(model)
