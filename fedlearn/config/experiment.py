"""The composition root: a checked configuration becomes the objects that a run is made of.

This is the one place where names turn into objects, and where the plug-ins meet: `conf/` names
them, Hydra imports them, and each gets typed arguments.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from hydra.utils import instantiate
from torch import nn

from fedlearn.aggregation_state import UnsavableError, capture
from fedlearn.cohort import cohort_size
from fedlearn.cohorts.sampler import CohortSampler
from fedlearn.config.attribution import attributed, blaming
from fedlearn.config.checks import (
    FUNCTIONAL,
    IN_STEP,
    KINDS,
    REGRESSION,
    check,
    choose_twin,
    without_extras,
)
from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.config.local_training import local_training
from fedlearn.config.protocol import check_same, protocol_of
from fedlearn.config.schema import Settings
from fedlearn.config.targets import TARGET, locate
from fedlearn.faults import Faults
from fedlearn.freezing import freeze
from fedlearn.lr_schedules import LrSchedule, check_warmup
from fedlearn.schedule import Schedule
from fedlearn.seeding import borrowed_global_rng, seed
from fedlearn.types import ContinualStrategy, Kind, LocalTraining, Scenario

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

    from fedlearn.runtimes.runtime import Runtime
    from fedlearn.tracking.tracker import Tracker

SCENARIO_BUILDER = "scenarios.build.build_scenario"
"""Where dataset, stream and partition meet; named here, because the engine imports no plug-in."""

ON_SITE, DEPLOYMENT = "on_site", "deployment"
"""The partition and the clock that each client's machine has of its own, and where they are."""

DUTIES = {
    "dataset": ("train", "test", "num_classes", "digest"),
    "scenario": ("lay_out",),
    "partition": ("split",),
    "clock": ("orders", "schedule"),
    "skew": ("views", "labels"),
    "cohort": ("choose", "check", "by_losses"),
    "continual": ("train_turn",),
    "aggregation": ("configure_train", "aggregate_train"),
    "optimizer": ("zero_grad", "step"),
    "lr_schedule": ("factor", "over", "warmup"),
    "runtime": ("devices", "check", "open", "run"),
    "tracker": ("start", "event", "finish"),
}
"""What each group's object must have, of the protocol that it stands for."""

Bound = Callable[[int], str | None]


@dataclass(frozen=True)
class Plan:
    """A run as far as it can be built and checked before any data loads.

    Attributes:
        composed: What it was built from.
        settings: The plain values.
        optimizer: Builds an optimiser from parameters.
        lr_schedule: What its learning rate is multiplied by, round by round.
        aggregation: The server's Flower strategy.
        bound: Given a number of replies, why the aggregation cannot use so few, or None.
        stream: How the dataset unfolds.
        partition: How samples are split across clients.
        clock: In which order and when clients meet their experiences.
        skew: What is different about each client's samples.
        cohort: Chooses who trains in a round.
        runtime: Runs the apps.
        tracker: Receives the events.
    """

    composed: Composed
    settings: Settings
    optimizer: Callable[..., torch.optim.Optimizer]
    lr_schedule: LrSchedule
    aggregation: "Strategy"
    bound: Bound | None
    stream: Any
    partition: Any
    clock: Any
    skew: Any
    cohort: CohortSampler
    runtime: "Runtime"
    tracker: "Tracker"

    @property
    def device(self) -> torch.device:
        """Where the server's model lives: the runtime's first device."""
        return self.runtime.devices[0]


@dataclass(frozen=True)
class Experiment:
    """Everything that a run is made of.

    Attributes:
        settings: The plain values.
        choices: The option of each group, e.g. ``{"continual": "replay"}``.
        protocol: What of the configuration defines the protocol.
        device: Where the server's model lives: the runtime's first one.
        scenario: The protocol, on `device`; where there are several, its training samples are in
            the host's memory, and the runtime gives each device those of its clients.
        schedule: The task clock.
        cohort: Chooses who trains in a round.
        build_model: Builds the initial model on `device`; the same weights on every call.
        training: What local training is made of.
        lr_schedule: What the learning rate is multiplied by, round by round.
        faults: What goes wrong on purpose.
        continual: The clients' learner.
        aggregation: The server's Flower strategy.
        bound: Given a number of replies, why the aggregation cannot use so few, or None.
        runtime: Runs the apps.
        tracker: Receives the events.
    """

    settings: Settings
    choices: dict[str, str]
    protocol: dict[str, Any]
    device: torch.device
    scenario: Scenario
    schedule: Schedule
    cohort: CohortSampler
    build_model: Callable[[], nn.Module]
    training: LocalTraining
    lr_schedule: LrSchedule
    faults: Faults
    continual: ContinualStrategy
    aggregation: "Strategy"
    bound: Bound | None
    runtime: "Runtime"
    tracker: "Tracker"


def prepare(composed: Composed) -> Plan:
    """Check a configuration and build what needs no data; cheap checks come first.

    Raises:
        ConfigError: It cannot run; the message is one line for the user.
    """
    settings = check(composed)
    stream = _make(composed, "scenario")
    _check_kind(composed, getattr(stream, "kind", None))
    aggregation = _make(composed, "aggregation")
    if settings.checkpoint_every is not None:
        _check_savable(composed, aggregation)
    return Plan(
        composed=composed,
        settings=settings,
        optimizer=_optimizer(composed),
        lr_schedule=_make(composed, "lr_schedule"),
        aggregation=aggregation,
        bound=_bound(composed, settings),
        stream=stream,
        partition=_make(composed, "partition"),
        clock=_make(composed, "clock"),
        skew=_make(composed, "skew"),
        cohort=_make(composed, "cohort"),
        runtime=_make(composed, "runtime"),
        tracker=_make(composed, "tracker"),
    )


def build(plan: Plan) -> Experiment:
    """Load the data and build the rest.

    Raises:
        ConfigError: The data cannot be read, or the parts do not fit together.
    """
    composed, settings = plan.composed, plan.settings
    for group in ("partition", "clock"):
        if composed.choices[group] == ON_SITE and composed.choices["runtime"] != DEPLOYMENT:
            raise ConfigError(
                f"{group}=on_site: is for runtime=deployment, whose clients have machines of their "
                f"own, and runtime={composed.choices['runtime']} has none"
            )
    scenario = _placed(load_scenario(plan), plan.runtime.devices)
    _check_kind(composed, scenario.kind)
    if settings.manifest is not None:
        check_same(settings.manifest, scenario.manifest())
    if scenario.train.regression and not composed.tree["continual"].get(REGRESSION):
        raise ConfigError(
            f"continual={composed.choices['continual']}: is for classes, and "
            f"dataset={composed.choices['dataset']} is a regression"
        )
    training = local_training(settings, scenario, plan.optimizer)
    schedule = schedule_of(plan, scenario)
    if composed.tree["continual"].get(IN_STEP) and not (
        schedule.is_in_step and bool((scenario.orders == scenario.orders[0]).all())
    ):
        raise ConfigError(
            f"continual={composed.choices['continual']}: needs all clients in the same experience "
            f"at the same time, and with clock={composed.choices['clock']} and "
            f"scenario={composed.choices['scenario']} they are not; use clock=in_step"
        )
    with blaming("lr_schedule", composed):
        check_warmup(plan.lr_schedule, schedule)
    with blaming("cohort", composed):
        size = cohort_size(scenario.num_clients, settings.fraction_train)
        plan.cohort.check(scenario.num_clients, size, schedule.num_rounds)
    with blaming("continual", composed):
        continual = _continual_factory(composed, settings)(training=training)
    _expect(composed, "continual", continual)
    build_model = _equipped(_model_factory(plan, scenario), continual, plan)
    with blaming("runtime", composed):
        plan.runtime.check(continual, build_model)
    return Experiment(
        settings=settings,
        choices=composed.choices,
        protocol=protocol_of(composed),
        device=plan.device,
        scenario=scenario,
        schedule=schedule,
        cohort=plan.cohort,
        build_model=build_model,
        training=training,
        lr_schedule=plan.lr_schedule,
        faults=Faults(**dataclasses.asdict(settings.faults)),
        continual=continual,
        aggregation=plan.aggregation,
        bound=plan.bound,
        runtime=plan.runtime,
        tracker=plan.tracker,
    )


def _check_kind(composed: Composed, kind: Kind | None) -> None:
    """Check that the continual strategy can work with what an experience brings, where known."""
    kinds = composed.tree["continual"].get(KINDS)
    if kind is not None and kinds is not None and kind not in kinds:
        fits = " or ".join(f"{each}-incremental" for each in kinds)
        raise ConfigError(
            f"continual={composed.choices['continual']}: needs a {fits} scenario, and "
            f"scenario={composed.choices['scenario']} is {kind}-incremental"
        )


def _check_savable(composed: Composed, aggregation: "Strategy") -> None:
    """Check that checkpoints can hold what the aggregation keeps, as far as it shows by now."""
    try:
        capture(aggregation)
    except UnsavableError as error:
        raise ConfigError(
            f"aggregation={composed.choices['aggregation']}: keeps {error}, which a checkpoint "
            "cannot hold; set checkpoint_every=null"
        ) from error


def _continual_factory(composed: Composed, settings: Settings) -> Callable[..., Any]:
    if settings.engine != FUNCTIONAL:
        return _factory(composed, "continual")
    node = without_extras("continual", choose_twin(composed))
    return cast(Callable[..., Any], instantiate(node, _partial_=True, _convert_="all"))


def _equipped(
    build_model: Callable[[], nn.Module], continual: ContinualStrategy, plan: Plan
) -> Callable[[], nn.Module]:
    """Return what builds the model that server and clients use with `continual`."""
    equip = getattr(continual, "equip", None)
    if equip is None:
        return build_model
    equip_seed = seed(plan.settings.seed, "equip")

    def build() -> nn.Module:
        with borrowed_global_rng(equip_seed):
            return cast(nn.Module, equip(build_model())).to(plan.device)

    with blaming("continual", plan.composed):
        equipped = build()  # it may find that the model does not suit it
    if plan.settings.local.freeze and _frozen(equipped) < _frozen(build_model()):
        raise ConfigError(
            f"local.freeze=[{','.join(plan.settings.local.freeze)}]: "
            f"continual={plan.composed.choices['continual']} trains layers of its own in place of "
            "the model's; remove it"
        )
    return build


def _frozen(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


def _factory(composed: Composed, group: str) -> Callable[..., Any]:
    """Return what builds the group's object, given what fedlearn fills in."""
    node = without_extras(group, composed.tree[group])
    # a partial, because Hydra would turn a dataclass among its own arguments into a configuration
    return cast(Callable[..., Any], instantiate(node, _partial_=True, _convert_="all"))


def _make(composed: Composed, group: str) -> Any:
    with blaming(group, composed):
        made = _factory(composed, group)()
    _expect(composed, group, made)
    return made


def _expect(composed: Composed, group: str, made: Any) -> None:
    for name in DUTIES[group]:
        if not hasattr(made, name):
            target = composed.tree[group][TARGET]
            raise ConfigError(
                f"{group}.{TARGET}={target}: what it makes, {type(made).__name__}, has no {name}"
            )


def _placed(scenario: Scenario, devices: Sequence[torch.device]) -> Scenario:
    """Return a scenario with its test samples on the first device, all samples if on the only."""
    if len(devices) == 1:
        return scenario.to(devices[0])
    return dataclasses.replace(scenario, test=scenario.test.to(devices[0]))


def _optimizer(composed: Composed) -> Callable[..., torch.optim.Optimizer]:
    with blaming("optimizer", composed):
        optimizer = _factory(composed, "optimizer")
        made = optimizer([nn.Parameter(torch.zeros(1))])  # it checks its values only here
    _expect(composed, "optimizer", made)
    return optimizer


def _bound(composed: Composed, settings: Settings) -> Bound | None:
    """Return the aggregation's bound, checked for the size of a full cohort."""
    node = composed.tree["aggregation"].get("bound")
    if node is None:
        return None
    bound = cast(Bound, instantiate(node, _partial_=True, _convert_="all"))
    if reason := bound(cohort_size(settings.num_clients, settings.fraction_train)):
        raise ConfigError(attributed(reason, "aggregation", composed, guess=False))
    return bound


def load_dataset(composed: Composed) -> Any:
    """Return the dataset that a configuration names (of `scenarios.dataset`).

    Raises:
        ConfigError: It cannot be read.
    """
    return _make(composed, "dataset")


def load_scenario(plan: Plan) -> Scenario:
    """Load the data and return the protocol that a plan describes, on the CPU.

    Raises:
        ConfigError: The data cannot be read, or the parts do not fit together.
    """
    composed, settings = plan.composed, plan.settings
    dataset = load_dataset(composed)
    build_scenario = locate("scenario", SCENARIO_BUILDER)
    with blaming("scenario", composed):
        return cast(
            Scenario,
            build_scenario(
                name=composed.choices["scenario"],
                dataset=dataset,
                stream=plan.stream,
                partition=plan.partition,
                num_clients=settings.num_clients,
                held_out=composed.tree["scenario"].get("held_out", 0.0),
                seed=settings.seed,
                clock=plan.clock,
                skew=plan.skew,
                rounds_per_experience=settings.rounds_per_experience,
            ),
        )


def schedule_of(plan: Plan, scenario: Scenario) -> Schedule:
    """Return when each client is in which experience."""
    return cast(
        Schedule,
        plan.clock.schedule(
            scenario.num_clients,
            scenario.num_experiences,
            plan.settings.rounds_per_experience,
            plan.settings.seed,
        ),
    )


def _model_factory(plan: Plan, scenario: Scenario) -> Callable[[], nn.Module]:
    """Return what builds the initial model, after building it once to see that it fits the data."""
    factory = _factory(plan.composed, "model")
    model_seed = seed(plan.settings.seed, "model")

    def build_model() -> nn.Module:
        with borrowed_global_rng(model_seed):
            model = factory(input_shape=scenario.input_shape, num_classes=scenario.num_classes)
        freeze(model, plan.settings.local.freeze)
        return cast(nn.Module, model).to(plan.device)

    with blaming("model", plan.composed):
        model = build_model().eval()
        known = scenario.train if len(scenario.train) else scenario.test
        x = known.inputs(torch.zeros(1, dtype=torch.int64))  # of the samples' own type
        x = x.to(plan.device)
        try:
            with torch.no_grad():
                logits = model(x)
        except (RuntimeError, IndexError) as error:  # for shapes, types or tokens that do not fit
            raise ValueError(f"takes no input of shape {list(x.shape)}: {error}") from error
        if logits.shape != (1, scenario.num_classes):
            raise ValueError(
                f"gives an output of shape {list(logits.shape)}, must be (batch, num_classes) = "
                f"{[1, scenario.num_classes]}"
            )
    return build_model
