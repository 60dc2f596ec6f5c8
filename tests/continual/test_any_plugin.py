"""Any of Avalanche's plugins and templates by YAML: stock ones, their state, and what is wrong."""

import pickle
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from lone_client import (
    STRATEGIES,
    TASK_TRAINING,
    TRAINING,
    gap,
    live,
    mlp,
    permuted,
    persist,
    split,
    through_json,
    turn_at,
    twin,
)
from torch import nn

from fedlearn.types import State
from strategies.continual.avalanche.plugin import plugin

PLUGINS, TEMPLATES = "avalanche.training.plugins", "avalanche.training.supervised"
DEPRECATED = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
EWC_STATE = ["plugins.0.importances", "plugins.0.saved_params"]
REPLAY_STATE = ["plugins.0.storage_policy.buffer_groups", "plugins.0.storage_policy._num_exps"]
LWF_STATE = [f"plugins.0.lwf.{name}" for name in ("prev_model", "prev_classes_by_task", "expcount")]


def node(name: str, **settings: Any) -> dict[str, Any]:
    return {"_target_": name, **settings}


STOCK: dict[str, dict[str, Any]] = {
    "EWCPlugin": {
        "plugins": [node(f"{PLUGINS}.EWCPlugin", ewc_lambda=10.0)],
        "keeps": EWC_STATE,
    },
    "MASPlugin": {
        "plugins": [node(f"{PLUGINS}.MASPlugin", lambda_reg=0.1, alpha=0.5)],
        "keeps": ["plugins.0.importance", "plugins.0.params"],
    },
    "LwFPlugin": {"plugins": [node(f"{PLUGINS}.LwFPlugin")], "keeps": LWF_STATE},
    "ReplayPlugin": {
        "plugins": [node(f"{PLUGINS}.ReplayPlugin", mem_size=20)],
        "keeps": REPLAY_STATE,
        "consolidates": "data",
        "loader": "avalanche",
    },
    "ReplayPlugin with a storage policy": {
        "plugins": [
            node(
                f"{PLUGINS}.ReplayPlugin",
                mem_size=20,
                storage_policy=node(
                    "avalanche.training.storage_policy.ClassBalancedBuffer", max_size=20
                ),
            )
        ],
        "keeps": [
            "plugins.0.storage_policy.buffer_groups",
            "plugins.0.storage_policy.seen_classes",
        ],
        "consolidates": "data",
        "loader": "avalanche",
    },
    "Naive": {"template": node(f"{TEMPLATES}.Naive"), "consolidates": "nothing"},
    "Naive from loaders": {
        "template": node(f"{TEMPLATES}.Naive"),
        "consolidates": "data",
        "loader": "avalanche",
    },
    "EWC": {"template": node(f"{TEMPLATES}.EWC", ewc_lambda=10.0), "keeps": EWC_STATE},
    "Replay": {
        "template": node(f"{TEMPLATES}.Replay", mem_size=20),
        "keeps": REPLAY_STATE,
        "consolidates": "data",
        "loader": "avalanche",
    },
}
"""Avalanche's own, uncorrected."""


@DEPRECATED
@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("kind", ["class", "task", "domain"])
def test_rounds_state_and_one_long_training_agree_exactly(kind: str, name: str) -> None:
    training = TASK_TRAINING if kind == "task" else TRAINING
    stream = permuted() if kind == "domain" else split(task=kind == "task")
    strategy = plugin(training=training, **STOCK[name])
    models = [mlp() for _ in range(4)]
    reports = live(strategy, models[0], stream, rounds=3)
    long_reports = live(strategy, models[1], stream, epochs=3)
    live(strategy, models[2], stream, rounds=3, carry=through_json)
    persist(strategy, models[3], stream, epochs=3)
    assert [gap(models[0], other) for other in models[1:]] == [0.0, 0.0, 0.0]
    assert reports[-1].loss == long_reports[-1].loss
    assert sum(each.replayed for each in reports) == sum(each.replayed for each in long_reports)


@pytest.mark.parametrize(
    ("stock", "ours", "tolerance"),
    [
        ("EWCPlugin", "ewc", 0.0),
        ("EWC", "ewc", 0.0),
        ("MASPlugin", "mas", 1e-6),  # which sums the penalty in another order
        ("Naive", "naive", 0.0),
    ],
)
def test_stock_is_ours_where_corrections_do_not_matter(
    stock: str, ours: str, tolerance: float
) -> None:
    models = mlp(), mlp()
    live(plugin(training=TRAINING, **STOCK[stock]), models[0], split(), rounds=2)
    live(STRATEGIES[ours](training=TRAINING), models[1], split(), rounds=2)
    assert gap(*models) <= tolerance


@DEPRECATED
def test_stock_replay_replays_and_remembers() -> None:
    reports = live(plugin(training=TRAINING, **STOCK["ReplayPlugin"]), mlp(), split(), rounds=2)
    assert [report.replayed for report in reports] == [
        0,
        0,
        60,
        60,
        60,
        60,
    ]  # 3 steps, all of memory
    rows = [rows for key, rows in reports[-1].state.tensors.items() if key.endswith("/rows")]
    assert sum(map(len, rows)) == 20


def test_loaders_see_every_sample_once_an_epoch_and_end_where_the_steps_do() -> None:
    strategy = plugin(training=TRAINING, **STOCK["Naive from loaders"])
    (report,) = live(strategy, mlp(), split(1), epochs=2)
    assert report.steps == 6
    (report,) = live(strategy, mlp(), split(1), steps=4)
    assert report.steps == 4
    (report,) = live(strategy, mlp(), split(1), epochs=2, work=0.6)
    assert report.steps == 4


def test_loaders_use_known_statistics_for_a_batch_of_one_sample() -> None:
    strategy = plugin(training=TRAINING, **STOCK["Naive from loaders"])
    model = mlp(norm=True)
    (report,) = live(strategy, model, split(1, size=33))
    assert report.steps == 2
    assert int(model[1].num_batches_tracked) == 1
    assert model[1].training


def test_loaders_augment_what_they_load() -> None:
    dark = replace(TRAINING, augment=lambda x, _: torch.zeros_like(x))
    strategy, model = plugin(training=dark, **STOCK["Naive from loaders"]), mlp()
    live(strategy, model, split(1))
    assert torch.equal(model[0].weight, mlp()[0].weight)


def test_several_plugins_run_in_their_order() -> None:
    both = {
        "plugins": [
            node(f"{PLUGINS}.EWCPlugin", ewc_lambda=10.0),
            node(f"{PLUGINS}.LwFPlugin"),
        ],
        "keeps": [*EWC_STATE, *(path.replace("plugins.0", "plugins.1") for path in LWF_STATE)],
    }
    models = [mlp() for _ in range(4)]
    strategy = plugin(training=TRAINING, **both)
    live(strategy, models[0], split(), rounds=2)
    live(strategy, models[1], split(), epochs=2)
    for model, name in zip(models[2:], ("EWCPlugin", "LwFPlugin"), strict=True):
        live(plugin(training=TRAINING, **STOCK[name]), model, split(), rounds=2)
    assert gap(models[0], models[1]) == 0.0
    assert min(gap(models[0], models[2]), gap(models[0], models[3])) > 1e-4


def test_it_travels_to_another_process() -> None:
    strategy = plugin(training=TRAINING, **STOCK["EWC"])
    live(strategy, mlp(), split(1))
    models = mlp(), mlp()
    live(strategy, models[0], split(2))
    live(pickle.loads(pickle.dumps(strategy)), models[1], split(2))
    assert gap(*models) == 0.0


def test_plugins_are_new_in_every_turn_with_all_that_is_inside_them() -> None:
    strategy = plugin(training=TRAINING, **STOCK["ReplayPlugin with a storage policy"])
    (one,), (other,) = strategy.plugins(), strategy.plugins()
    assert one is not other
    assert one.storage_policy is not other.storage_policy


def test_from_scratch_starts_each_experience_at_the_weights_first_received() -> None:
    still = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=0.0))
    strategy, stream, model = STRATEGIES["from_scratch"](training=still), split(2), mlp()
    state = live(strategy, model, stream[:1], rounds=2)[-1].state
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    received = twin(model)
    turn = turn_at(2, previous=stream[0])
    state = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).state
    assert gap(model, mlp()) == 0.0  # the first turn starts anew
    model = twin(received)
    strategy.train_turn(model, stream[1], stream.__getitem__, turn_at(3), state)
    assert gap(model, received) == 0.0  # and the second goes on from what is received


def test_from_scratch_clips_from_where_it_starts() -> None:
    clipped = replace(TRAINING, max_grad_norm=1e-3)
    strategy, stream, model = STRATEGIES["from_scratch"](training=clipped), split(2), mlp()
    live(strategy, model, stream)
    steps = [
        (before - after).detach().pow(2).sum()
        for before, after in zip(mlp().parameters(), model.parameters(), strict=True)
    ]
    assert 0 < float(sum(steps)) ** 0.5 <= 3 * 0.1 * 1e-3 * 1.01  # 3 steps of the last experience


def test_ewc_with_replay_is_both() -> None:
    models = {name: mlp() for name in ("ewc_replay", "ewc", "replay")}
    reports = {
        name: live(STRATEGIES[name](training=TRAINING), model, split(), rounds=2)
        for name, model in models.items()
    }
    assert reports["ewc_replay"][-1].replayed == reports["replay"][-1].replayed
    assert min(gap(models["ewc_replay"], models[name]) for name in ("ewc", "replay")) > 1e-4


# What is forgotten


class Counts(SupervisedPlugin):
    """Remembers how many experiences and steps there were, what it saw last, and a teacher."""

    def __init__(self, is_teaching: bool = False) -> None:
        super().__init__()
        self.experiences, self.is_teaching = 0, is_teaching
        self.teacher: nn.Module | None = None
        self.inner = {"steps": 0, "fixed": torch.zeros(2)}

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        self.inner["steps"] += 1
        self.last = strategy.mb_x.detach()

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        self.experiences += 1
        if self.is_teaching:
            self.teacher = mlp()


COUNTS = f"{__name__}.Counts"


@pytest.mark.parametrize(
    ("keeps", "derived", "lost", "turn"),
    [
        ([], [], "plugins.0.inner, plugins.0.last", 1),
        ([], ["plugins.0.last"], "plugins.0.inner", 1),
        (["plugins.0.inner.fixed"], ["plugins.0.last"], "plugins.0.inner.steps", 1),
        (["plugins.0.inner"], ["plugins.0.last"], "plugins.0.experiences", 2),
        (["plugins.0.inner", "plugins.0.experiences"], ["plugins.0.last"], None, 2),
    ],
)
def test_what_changes_and_is_not_kept_is_an_error(
    keeps: list[str], derived: list[str], lost: str | None, turn: int
) -> None:
    strategy = plugin(training=TRAINING, plugins=[node(COUNTS)], keeps=keeps, derived=derived)
    live(strategy, mlp(), split(turn - 1))
    if lost is None:
        live(strategy, mlp(), split(3), rounds=2)
        return
    with pytest.raises(ValueError, match=rf"{re.escape(lost)} change in a turn and would be lost"):
        live(strategy, mlp(), split(turn))


def test_a_teacher_that_nobody_keeps_is_missed_at_the_first_consolidation() -> None:
    strategy = plugin(
        training=TRAINING,
        plugins=[node(COUNTS, is_teaching=True)],
        keeps=["plugins.0.inner", "plugins.0.experiences"],
        derived=["plugins.0.last"],
    )
    with pytest.raises(ValueError, match=r"plugins\.0\.teacher change"):
        live(strategy, mlp(), split(2))


def test_a_template_of_ones_own_must_keep_its_state_too() -> None:
    settings = {"template": node(f"{__name__}.Remembering"), "consolidates": "data"}
    with pytest.raises(ValueError, match="seen change in a turn"):
        live(plugin(training=TRAINING, **settings), mlp(), split(1))
    strategy = plugin(training=TRAINING, keeps=["seen"], **settings)
    states = [report.state for report in live(strategy, mlp(), split(2), rounds=2)]
    assert [state.values["tree"] for state in states] == [f'{{"seen":{n}}}' for n in (3, 6, 9, 12)]


class Remembering(SupervisedTemplate):
    """Counts its steps."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen = 0

    def _after_training_iteration(self, **kwargs: Any) -> None:
        self.seen += 1
        super()._after_training_iteration(**kwargs)


class OwnModel(SupervisedTemplate):
    """Trains a model of its own."""

    def __init__(self, *, model: nn.Module, **settings: Any) -> None:
        super().__init__(model=nn.Sequential(model), **settings)


class OwnOutput(SupervisedTemplate):
    """Doubles the logits."""

    def forward(self) -> torch.Tensor:
        return 2 * super().forward()


def test_a_templates_own_output_is_what_trains() -> None:
    stream, models = split(1, size=10), [mlp(), mlp()]
    losses = []
    for model, template in zip(
        models, (f"{TEMPLATES}.Naive", f"{__name__}.OwnOutput"), strict=True
    ):
        strategy = plugin(training=TRAINING, template=node(template), consolidates="nothing")
        losses.append(live(strategy, model, stream)[0].loss)
    x, y = stream[0].gather()
    expected = nn.functional.cross_entropy(2 * mlp()(x), y)
    assert losses[1] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert losses[1] != losses[0]


# What is wrong

EWC = node(f"{PLUGINS}.EWCPlugin", ewc_lambda=1.0)
AT = "continual.plugins.0"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "continual.plugins=[]: needs a plugin, or a continual.template"),
        ({"plugins": [{"ewc_lambda": 1.0}]}, f"{AT}={{'ewc_lambda': 1.0}}: needs a _target_"),
        ({"plugins": [Counts()]}, f"{AT}: a Counts that is made already would pass from client"),
        (
            {"plugins": [node(f"{PLUGINS}.EWCPlugn")]},
            f"{AT}._target_={PLUGINS}.EWCPlugn: {PLUGINS} has no EWCPlugn; did you mean EWCPlugin?",
        ),
        (
            {"plugins": [node("avalanch.EWC")]},
            f"{AT}._target_=avalanch.EWC: No module named 'avalanch'",
        ),
        (
            {"plugins": [node(f"{PLUGINS}.EWCPlugin", ewc_lamda=1.0)]},
            f"{AT}.ewc_lamda=1.0: unknown key; did you mean ewc_lambda?",
        ),
        (
            {"plugins": [node(f"{PLUGINS}.EWCPlugin")]},
            f"{AT}.ewc_lambda: is missing; {PLUGINS}.EWCPlugin requires it",
        ),
        (
            {"plugins": [node(f"{PLUGINS}.EWCPlugin", ewc_lambda=1.0, mode="often")]},
            f"{AT}._target_={PLUGINS}.EWCPlugin: cannot be made: ",
        ),
        ({"plugins": [node("torch.nn.ReLU")]}, f"{AT}: ReLU is no plugin of Avalanche's"),
        (
            {"plugins": [EWC], "keeps": ["plugins.0.importance"]},
            "continual.keeps=plugins.0.importance: EWCPlugin has no importance; "
            "did you mean importances?",
        ),
        (
            {"plugins": [EWC], "keeps": ["plugins.1.importances"]},
            "continual.keeps=plugins.1.importances: ",
        ),
        (
            {"plugins": [EWC], "derived": ["plugin.0"]},
            "continual.derived=plugin.0: SupervisedTemplateTurnByTurn has no plugin; "
            "did you mean plugins?",
        ),
        (
            {"plugins": [node(COUNTS)], "keeps": ["plugins.0.after_training_exp"]},
            "continual.keeps=plugins.0.after_training_exp: a method cannot be kept between turns",
        ),
        (
            {"plugins": [EWC], "keeps": EWC_STATE, "consolidates": "nothing"},
            "needs continual.consolidates=data or model",
        ),
        (
            {"plugins": [EWC], "consolidates": "never"},
            "continual.consolidates=never: must be one of nothing, data, model",
        ),
        (
            {"plugins": [EWC], "loader": "torch"},
            "continual.loader=torch: must be one of tensors, avalanche",
        ),
        (
            {"template": node(f"{TEMPLATES}.Naive", train_epochs=3)},
            "continual.template.train_epochs=3: is filled in by fedlearn; remove it",
        ),
        (
            {"template": node(f"{TEMPLATES}.EWC", ewc_lambda=1.0, mod="online")},
            "continual.template.mod=online: unknown key; did you mean mode?",
        ),
        (
            {"template": node(f"{PLUGINS}.EWCPlugin", ewc_lambda=1.0)},
            "is no supervised template of Avalanche's",
        ),
        (
            {"template": node(f"{TEMPLATES}.AR1")},
            "continual.loader=tensors: AR1 has a make_train_dataloader of its own; "
            "use continual.loader=avalanche",
        ),
        (
            {"template": node(f"{__name__}.OwnModel")},
            "continual.template: OwnModel trains a model that it makes itself",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        plugin(training=TRAINING, **settings)
    assert "\n" not in str(caught.value)


def test_a_lost_state_is_an_error_and_not_a_guess() -> None:
    strategy, stream = plugin(training=TRAINING, **STOCK["EWCPlugin"]), split(2)
    with pytest.raises(ValueError, match="client 0 has lost the state it had"):
        strategy.train_turn(
            mlp(), stream[1], stream.__getitem__, turn_at(1, previous=stream[0]), State()
        )
