"""The keys of a run that belong to no group: their types and their ranges.

Values and meanings stand in ``conf/config.yaml``. The groups' own keys are not listed anywhere:
they are the parameters of whatever the chosen YAML's ``_target_`` names.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

GROUPS = (
    "dataset",
    "scenario",
    "partition",
    "clock",
    "skew",
    "cohort",
    "model",
    "continual",
    "aggregation",
    "optimizer",
    "lr_schedule",
    "runtime",
    "tracker",
)
"""The groups of a run, in the order in which the parts are built."""

SCHEMA = "_schema"
"""The name under which Hydra knows `Schema`; the first entry of config.yaml's defaults."""


def within(interval: str) -> Any:
    """Declare a number that must lie in `interval`."""
    return field(default=MISSING, metadata={"interval": interval})


def one_of(*choices: str) -> Any:
    """Declare a string that must be one of `choices`, or null where its type has it."""
    return field(default=MISSING, metadata={"choices": choices})


@dataclass
class Augment:
    """How training images change, batch by batch."""

    flip: bool = MISSING
    crop: int = within("[0, inf)")
    rotation: float = within("[0, 180]")


@dataclass
class Local:
    """One client's turn."""

    epochs: int = within("[1, inf)")
    steps: int | None = within("[1, inf)")
    batch_size: int = within("[1, inf)")
    loss: str | None = one_of("cross_entropy", "bce", "mse")
    label_smoothing: float = within("[0, 1)")
    class_balance: float | None = within("[0, 1)")
    augment: Augment = field(default_factory=Augment)
    freeze: list[str] = MISSING
    precision: str = one_of("float32", "bfloat16")
    max_grad_norm: float | None = within("(0, inf)")
    max_loss: float | None = within("(0, inf)")
    gradient_metrics: bool = MISSING


@dataclass
class Head:
    """The model's head during training."""

    mask: bool = MISSING


@dataclass
class Faults:
    """What goes wrong on purpose."""

    drop_out: float = within("[0, 1)")
    straggle: float = within("[0, 1]")
    straggle_work: float = within("(0, 1]")


@dataclass
class Settings:
    """Everything about a run that is a plain value."""

    seed: int = within("[0, inf)")
    num_clients: int = within("[1, inf)")
    fraction_train: float = within("(0, 1]")
    fraction_evaluate: float = within("[0, 1]")
    rounds_per_experience: int = within("[1, inf)")
    evaluate_every: int = within("[1, inf)")
    max_failed_rounds: int = within("[1, inf)")
    checkpoint_every: int | None = within("[1, inf)")
    local: Local = field(default_factory=Local)
    head: Head = field(default_factory=Head)
    faults: Faults = field(default_factory=Faults)
    engine: str = one_of("avalanche", "functional")
    out: str = MISSING
    name: str = MISSING
    dry_run: bool = MISSING
    profile: bool = MISSING
    manifest: str | None = MISSING


@dataclass
class Schema(Settings):
    """The whole configuration as Hydra composes it."""

    dataset: Any = MISSING
    scenario: Any = MISSING
    partition: Any = MISSING
    clock: Any = MISSING
    skew: Any = MISSING
    cohort: Any = MISSING
    model: Any = MISSING
    continual: Any = MISSING
    aggregation: Any = MISSING
    optimizer: Any = MISSING
    lr_schedule: Any = MISSING
    runtime: Any = MISSING
    tracker: Any = MISSING


def register() -> None:
    """Let Hydra know the schema; doing so again changes nothing."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=SCHEMA, node=Schema)
