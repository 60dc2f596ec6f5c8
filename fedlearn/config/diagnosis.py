"""Diagnosis: which override made a composition fail, in one line.

Hydra's own messages span several lines, name no nearest match, and differ by where they were found.
So when a composition fails, and only then, the overrides are tried again one by one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import MarkedYAMLError, YAMLError

from fedlearn.config.choices import Choice, find_choices
from fedlearn.config.errors import ConfigError, among, did_you_mean, nearest, one_line, shown
from fedlearn.config.raw import compose_raw, reason

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
"""What Hydra raises for a wrong override or a wrong YAML file."""

_TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def diagnose(overrides: Sequence[str], config_dir: Path | None, error: Exception) -> ConfigError:
    """Return the one-line error for what made composing `overrides` raise `error`."""
    if isinstance(error, ConfigError):
        return error
    groups = find_choices([config_dir] if config_dir else [])
    for found in _suspects(overrides, config_dir, groups, error):
        return found
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(one_line(f"{mark.name}, line {mark.line + 1}: {error.problem}"))
    return ConfigError(one_line(f"{error} {error.__cause__ or ''}"))


def _suspects(
    overrides: Sequence[str],
    config_dir: Path | None,
    groups: Mapping[str, Sequence[Choice]],
    error: Exception,
) -> Iterator[ConfigError]:
    """Yield an error for each wrong override, found by ever deeper looks."""
    parsed = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException as unreadable:
            yield _syntax_error(text, groups, unreadable)
            return
    for override in parsed:
        if override.is_sweep_override():
            text = str(override.input_line)
            key, _, several = text.partition("=")
            in_one = f" (or brackets, to mean one list: {key}=[{several}])"
            yield ConfigError(f"{text}: several values need -m{in_one * (key not in groups)}")
        elif override.key_or_group in groups:
            yield from _choice_error(override, groups[override.key_or_group])
    chosen = [str(each.input_line) for each in parsed if each.key_or_group in groups]
    try:
        config = compose_raw(chosen, config_dir)
    except COMPOSITION_ERRORS:
        return
    known = [*groups, *_keys(OmegaConf.to_container(config.copy(), resolve=False))]
    values = [override for override in parsed if override.key_or_group not in groups]
    for override in values:
        yield from _key_error(override, config, known)
    for override in values:
        text = str(override.input_line)
        alone = error if len(values) == 1 else _error_of([*chosen, text], config_dir)
        if alone is not None:
            yield ConfigError(f"{text}: {_wrong_value(alone)}")


def _syntax_error(
    text: str, groups: Mapping[str, Sequence[Choice]], error: HydraException
) -> ConfigError:
    if "=" in text or text.startswith("~"):
        return ConfigError(one_line(f"{text}: {str(error).splitlines()[0]}"))
    homes = {choice.name: group for group, choices in groups.items() for choice in choices}
    close = nearest(text, homes)
    hint = f"; did you mean {homes[close]}={close}?" if close else ""
    return ConfigError(one_line(f"{text}: '=' is missing, expected key=value{hint}"))


def _choice_error(override: Override, choices: Sequence[Choice]) -> Iterator[ConfigError]:
    group, value = override.key_or_group, override.value()
    names = [choice.name for choice in choices]
    if override.is_delete() or value in names or (group == "experiment" and value is None):
        return
    text = f"{group}={shown(value)}"
    yield ConfigError(one_line(f"{text}: unknown{among(str(value), names)}"))


def _key_error(
    override: Override, config: DictConfig, known: Sequence[str]
) -> Iterator[ConfigError]:
    key = override.key_or_group
    if key.startswith("hydra") or override.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
        return
    if key in known or OmegaConf.select(config, key) is not None:
        return
    text = str(override.input_line)
    group, _, leaf = key.partition(".")
    choice = config.hydra.runtime.choices.get(group)
    if leaf and choice is not None:
        own = _own_keys(config[group])
        yield ConfigError(f"{text}: unknown key{among(leaf, own, f'keys of {group}={choice}')}")
    else:
        names = [each for each in known if not each.startswith("hydra")]
        yield ConfigError(f"{text}: unknown key{did_you_mean(key, names)}")


def _own_keys(node: Any) -> list[str]:
    """Return the keys of a group's node that are a user's business."""
    return [key for key in node if not key.startswith("_") and key not in ("limits", "bound")]


def _error_of(overrides: Sequence[str], config_dir: Path | None) -> Exception | None:
    try:
        compose_raw(overrides, config_dir)
    except COMPOSITION_ERRORS as error:
        return error
    return None


def _wrong_value(error: BaseException) -> str:
    """Return what is wrong with the one override that composing stopped at."""
    if isinstance(error.__cause__, OmegaConfBaseException):
        error = error.__cause__
    if not isinstance(error, OmegaConfBaseException):
        return one_line(error)
    said = reason(error)
    if isinstance(error, ValidationError):
        if found := re.search(r"could not be converted to (\w+)", said):
            return f"must be {_TYPES.get(found[1], found[1])}"
        if "is not a valid bool" in said:
            return "must be true or false"
        if said.endswith("is not Optional"):
            return "must not be null"
        if "is not a subclass of" in said:
            return "has keys of its own; set those"
    return said


def _keys(tree: Any, parent: str = "") -> Iterator[str]:
    """Yield every dotted key of `tree`, inner ones included."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{parent}{key}"
            yield name
            yield from _keys(value, f"{name}.")
