"""Checks of a composed configuration that need no data and build nothing."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from fedlearn.config import schema
from fedlearn.config.choices import REFUSED, find_choices
from fedlearn.config.composition import Composed, compose
from fedlearn.config.errors import ConfigError, among, did_you_mean, one_line, shown
from fedlearn.config.schema import GROUPS, Schema, Settings
from fedlearn.config.targets import LIMITS, TARGET, check_node, check_range, mismatch
from fedlearn.types import Kind

SUPPLIED = {
    "model": ("input_shape", "num_classes"),
    "continual": ("training",),
    "optimizer": ("params",),
}
"""Parameters of each group's objects that fedlearn fills in."""

FUNCTIONAL, KINDS, REGRESSION, IN_STEP = "functional", "kinds", "regression", "in_step"

EXTRA = {
    "scenario": ("held_out",),
    "aggregation": ("bound",),
    "continual": (FUNCTIONAL, KINDS, REGRESSION, IN_STEP),
}
"""Keys of each group's nodes that are for fedlearn, not for the node's object."""

_NAME = re.compile(r"[\w.,=+-]{1,200}")


def check(composed: Composed) -> Settings:
    """Return the checked settings of `composed`, whose groups' nodes are checked too.

    Raises:
        ConfigError: Something in it cannot be right.
    """
    settings = _checked_settings(composed.tree)
    for group in GROUPS:
        names = [choice.name for choice in find_choices().get(group, [])]
        choice = composed.choices.get(group)
        if choice is None:
            raise ConfigError(f"{group}: must be one choice; choices: {', '.join(names)}")
        if choice.startswith("_"):  # what choices share
            raise ConfigError(f"{group}={choice}: is not a choice{among(choice, names)}")
        if REFUSED in (composed.tree[group] or {}):
            raise ConfigError(f"{group}={choice}: {one_line(composed.tree[group][REFUSED])}")
        _check_group(group, composed.tree[group])
    continual = composed.tree["continual"]
    if settings.engine == FUNCTIONAL:
        choose_twin(composed)
    elif composed.tree["runtime"].get("executor") == "vectorized":
        raise ConfigError(
            f"runtime.executor=vectorized: needs engine=functional, and engine={settings.engine} "
            "trains client by client; use runtime.executor=process"
        )
    kinds = continual.get(KINDS, list(get_args(Kind)))
    if not isinstance(kinds, list) or not kinds or not set(kinds) <= set(get_args(Kind)):
        raise ConfigError(
            f"continual.{KINDS}={shown(kinds)}: must list some of {', '.join(get_args(Kind))}"
        )
    for key in (REGRESSION, IN_STEP):
        if expected := mismatch(continual.get(key, False), bool):
            raise ConfigError(f"continual.{key}={shown(continual[key])}: must be {expected}")
    return settings


def choose_twin(composed: Composed) -> dict[str, Any]:
    """Return the continual strategy's node with its pure-function twin as the target.

    Raises:
        ConfigError: It has none.
    """
    node = composed.tree["continual"]
    if not node.get(FUNCTIONAL):
        names = [
            choice.name
            for choice in find_choices()["continual"]
            if compose([f"continual={choice.name}"]).tree["continual"].get(FUNCTIONAL)
        ]
        raise ConfigError(
            f"engine=functional: continual={composed.choices['continual']} has no functional twin; "
            f"use engine=avalanche, or one of {', '.join(names)}"
        )
    twin = {**node, TARGET: node[FUNCTIONAL]}
    check_node("continual", twin, SUPPLIED["continual"], EXTRA["continual"])
    return twin


def without_extras(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return `node` without the keys that are not for its object."""
    without = (LIMITS, *EXTRA.get(group, ()))
    return {key: value for key, value in node.items() if key not in without}


def _checked_settings(tree: Mapping[str, Any]) -> Settings:
    _check_plain(Schema, tree, "")
    plain = {field.name: tree[field.name] for field in dataclasses.fields(Settings)}
    plain["local"] = schema.Local(**plain["local"])
    plain["local"].augment = schema.Augment(**tree["local"]["augment"])
    _check_local(plain["local"])
    plain["head"] = schema.Head(**plain["head"])
    plain["faults"] = schema.Faults(**plain["faults"])
    if not _NAME.fullmatch(plain["name"]):
        raise ConfigError(
            f"name={plain['name']}: must be up to 200 letters, digits and . , = + - _ "
            "(it ends a directory's name)"
        )
    return Settings(**plain)


def _check_local(local: schema.Local) -> None:
    """Check that the options of local training do not contradict each other."""
    if local.label_smoothing and local.loss not in (None, "cross_entropy"):
        raise ConfigError(
            f"local.label_smoothing={local.label_smoothing}: is for local.loss=cross_entropy, "
            f"not for local.loss={local.loss}; remove one of them"
        )


def _check_plain(kind: type, tree: Mapping[str, Any], parent: str) -> None:
    """Check the keys of one level of the schema: known, present, in range, one of the choices."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in tree:
        if key not in fields:
            known = [f"{parent}{name}" for name in _known(kind)]
            hint = did_you_mean(f"{parent}{key}", known)
            raise ConfigError(f"{parent}{key}={shown(tree[key])}: unknown key{hint}")
    for name, field in fields.items():
        path, value = f"{parent}{name}", tree.get(name, "???")
        if value == "???":
            if name in GROUPS:
                names = [choice.name for choice in find_choices().get(name, [])]
                raise ConfigError(f"{path}: is missing; choices: {', '.join(names)}")
            raise ConfigError(f"{path}: is missing")
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            _check_plain(field.type, value, f"{path}.")
        if interval := field.metadata.get("interval"):
            check_range(path, value, interval)
        if (choices := field.metadata.get("choices")) and value is not None:
            check_choice(path, value, choices)


def _known(kind: type) -> Iterator[str]:
    """Yield the dotted names of a schema's keys."""
    for field in dataclasses.fields(kind):
        yield field.name
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from (f"{field.name}.{name}" for name in _known(field.type))


def check_choice(path: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
        ConfigError: It is not.
    """
    if value in choices:
        return
    raise ConfigError(f"{path}={shown(value)}: unknown{among(str(value), choices)}")


def _check_group(group: str, node: Mapping[str, Any]) -> None:
    check_node(group, node, SUPPLIED.get(group, ()), EXTRA.get(group, ()))
    if group == "aggregation" and node.get("bound") is not None:
        check_node("aggregation.bound", node["bound"], ("cohort_size",), ())
    if group == "scenario" and (expected := mismatch(node.get("held_out", 0.0), float)):
        raise ConfigError(f"scenario.held_out={shown(node['held_out'])}: must be {expected}")
