"""Pairs of engines: each continual strategy that has a pure-function twin, with its twin."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lone_client import SMALL, STRATEGIES, TWINS
from torch import Tensor, nn

from fedlearn.types import Experience, LocalTraining, Samples
from strategies.continual.functional.continual import FunctionalContinual

CONF = Path(__file__).parents[2] / "conf" / "continual"
NODES = {name: yaml.safe_load((CONF / f"{name}.yaml").read_text()) for name in TWINS}
REMEMBERING = [name for name in TWINS if name != "naive"]


def _twin(name: str) -> Callable[..., FunctionalContinual]:
    node = NODES[name]
    settings = {
        key: node[key]
        for key in node
        if key not in ("_target_", "functional", "kinds", "regression", "in_step")
    }
    module, _, function = node["functional"].rpartition(".")
    factory = getattr(importlib.import_module(module), function)
    return partial(factory, **settings | SMALL.get(name, {}))


FUNCTIONAL = {name: _twin(name) for name in TWINS}
"""The twins, by name, with the settings that `lone_client.STRATEGIES` has."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "decay": partial(torch.optim.SGD, lr=0.1, weight_decay=0.01),
    "dampened": partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.3),
    "nesterov": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": partial(torch.optim.Adam, lr=2e-3, weight_decay=1e-3),
    "amsgrad": partial(torch.optim.Adam, lr=2e-3, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=2e-3, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3, weight_decay=1e-3),
    "centered": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.02, lr_decay=0.01, initial_accumulator_value=0.1),
}


def pair(name: str, training: LocalTraining) -> tuple[Any, FunctionalContinual]:
    """Return a continual strategy of both engines."""
    return STRATEGIES[name](training=training), FUNCTIONAL[name](training=training)


def vector(model: nn.Module) -> Tensor:
    """Return all parameters and buffers as one float64 vector."""
    return torch.cat([each.detach().double().flatten() for each in model.state_dict().values()])


def relative(one: nn.Module, other: nn.Module) -> float:
    """Return the distance of two models relative to the size of the first."""
    return float((vector(one) - vector(other)).norm() / vector(one).norm())


def in_float64(stream: list[Experience]) -> list[Experience]:
    """Return the same experiences with inputs in float64."""
    store = Samples(stream[0].samples.x.double(), stream[0].samples.y)
    return [
        Experience(each.index, store, each.rows, each.classes, each.task_label, each.transform)
        for each in stream
    ]
