"""The keys under ``local`` and ``head`` become what every client's training is made of."""

import dataclasses
import math
from collections.abc import Callable
from typing import cast

import torch

from fedlearn.augmentation import Augmentation
from fedlearn.config.errors import ConfigError, shown
from fedlearn.config.schema import Augment, Local, Settings
from fedlearn.types import LocalTraining, LossName, Precision, Scenario


def local_training(
    settings: Settings, scenario: Scenario, optimizer: Callable[..., torch.optim.Optimizer]
) -> LocalTraining:
    """Return what local training is made of.

    Raises:
        ConfigError: An option does not suit the scenario.
    """
    local = settings.local
    if scenario.train.regression:
        _check_regression(local, scenario)
    default = "mse" if scenario.train.regression else "cross_entropy"
    return LocalTraining(
        optimizer=optimizer,
        num_classes=scenario.num_classes,
        max_grad_norm=local.max_grad_norm,
        heads=scenario.classes if scenario.kind == "task" else None,
        mask_loss=_mask(settings, scenario),
        num_experiences=scenario.num_experiences,
        input_shape=scenario.input_shape,
        loss=cast(LossName, local.loss or default),
        label_smoothing=local.label_smoothing,
        class_balance=local.class_balance,
        augment=_augmentation(local.augment, scenario),
        frozen=tuple(local.freeze),
        precision=cast(Precision, local.precision),
        max_loss=math.inf if local.max_loss is None else local.max_loss,
        gradient_metrics=local.gradient_metrics,
        regression=scenario.train.regression,
    )


def _check_regression(local: Local, scenario: Scenario) -> None:
    """Check that no option is for classes, which a regression does not have."""
    for key, value, unused in (
        ("loss", local.loss, (None, "mse")),
        ("label_smoothing", local.label_smoothing, (0,)),
        ("class_balance", local.class_balance, (None,)),
    ):
        if value not in unused:
            raise ConfigError(
                f"local.{key}={shown(value)}: is for classes, and scenario={scenario.name} is a "
                "regression; remove it"
            )


def _augmentation(asked: Augment, scenario: Scenario) -> Augmentation | None:
    """Return what changes the inputs, or None for nothing."""
    shape = scenario.input_shape
    for key, value in dataclasses.asdict(asked).items():
        if value and len(shape) != 3:
            raise ConfigError(
                f"local.augment.{key}={shown(value)}: needs images (channels, height, width), and "
                f"scenario={scenario.name} has inputs of shape {list(shape)}"
            )
    if asked.crop and asked.crop >= min(shape[1:]):
        raise ConfigError(
            f"local.augment.crop={asked.crop}: must be less than the image's {min(shape[1:])} "
            "pixels, or a crop may hold nothing of it"
        )
    made = Augmentation(asked.flip, asked.crop, asked.rotation)
    return made if made != Augmentation() else None


def _mask(settings: Settings, scenario: Scenario) -> tuple[tuple[int, ...], ...] | None:
    """Return the classes that the training loss may see in each experience, or None for all."""
    if not settings.head.mask:
        return None
    if scenario.kind == "task":
        raise ConfigError(
            "head.mask=true: does nothing in a task-incremental scenario, which always sees "
            "one task's classes; remove it"
        )
    if all(len(classes) == scenario.num_classes for classes in scenario.classes):
        raise ConfigError(
            f"head.mask=true: does nothing in scenario={scenario.name}, where every experience "
            "holds every class; remove it"
        )
    return scenario.classes
