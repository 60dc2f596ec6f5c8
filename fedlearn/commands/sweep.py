"""A multirun's jobs: every combination of the values that the overrides give with commas."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException

from fedlearn.config.choices import find_choices
from fedlearn.config.diagnosis import diagnose
from fedlearn.config.errors import ConfigError


@dataclass(frozen=True)
class Sweep:
    """What a command line asks for.

    Attributes:
        overrides: As Hydra is to get them; globs are written out.
        jobs: Every combination, as overrides without commas; the last key varies fastest.
        fixed: Keys with one value.
        slashed: Keys with several values, one of which holds a slash and so cannot be in a
            directory's name.
    """

    overrides: list[str]
    jobs: list[list[str]]
    fixed: list[str]
    slashed: list[str]

    def label(self, overrides: Sequence[str]) -> str:
        """Return what sets a job apart from the others, but for its seed."""
        parsed = [OverridesParser.create().parse_override(text) for text in overrides]
        apart = [
            f"{each.key_or_group}={each.get_value_element_as_str()}"
            for each in parsed
            if each.key_or_group not in ("seed", *self.fixed)
        ]
        return " ".join(apart)


def plan_sweep(overrides: Sequence[str], config_dir: Path | None) -> Sweep:
    """Return the jobs that `overrides` ask for.

    Raises:
        ConfigError: An override cannot be read, or asks for a sweep that has no end.
    """
    texts: dict[str, str] = {}
    options: dict[str, list[str]] = {}
    slashed: list[str] = []
    foreign = any(text.startswith("hydra/sweeper=") for text in overrides)
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise diagnose([text], config_dir, error) from error
        key = override.get_key_element()  # given twice, the last one counts
        texts[key], options[key] = text, [text]
        if not override.is_sweep_override():
            continue
        if override.is_hydra_override():
            raise ConfigError(f"{text}: Hydra's own keys cannot have several values")
        if foreign:  # that sweeper draws the values, so only the rest can be checked now
            del options[key]
            continue
        values = _values(override, config_dir)
        texts[key] = f"{key}={','.join(values)}"
        options[key] = [f"{key}={value}" for value in values]
        if any("/" in value for value in values):
            slashed.append(override.key_or_group)
    fixed = [key.lstrip("+~") for key, each in options.items() if len(each) == 1]
    jobs = [list(job) for job in itertools.product(*options.values())]
    return Sweep(list(texts.values()), jobs, fixed, slashed)


def _values(override: Override, config_dir: Path | None) -> list[str]:
    """Return a swept override's values, in the grammar's own notation."""
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        choices = find_choices([config_dir] if config_dir else []).get(override.key_or_group, [])
        names = cast(Glob, override.value()).filter([choice.name for choice in choices])
        if not names:
            raise ConfigError(f"{override.input_line}: matches no choice")
        return [str(name) for name in names]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: an interval has no end of values; list some")
    return list(override.sweep_string_iterator())
