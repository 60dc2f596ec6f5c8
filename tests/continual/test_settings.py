"""The choices of `conf/continual` and the settings that they take."""

import inspect
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from lone_client import (
    STRATEGIES,
    TRAINING,
    built,
    gap,
    live,
    mlp,
    model_for,
    split,
    stream_for,
    training_for,
)
from omegaconf import OmegaConf

from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.agem import agem
from strategies.continual.avalanche.der_plus_plus import der_plus_plus
from strategies.continual.avalanche.ewc import ewc
from strategies.continual.avalanche.lwf import lwf
from strategies.continual.avalanche.mas import mas
from strategies.continual.avalanche.replay import replay
from strategies.continual.avalanche.si import si

CONF = Path(__file__).parents[2] / "conf" / "continual"
FOR_FEDLEARN = {"_target_", "_recursive_", "functional", "kinds", "regression", "in_step", "limits"}
"""Keys of a choice that are no settings of its strategy."""
OWN = [
    name
    for name in STRATEGIES
    if "continual.avalanche.plugin." not in (CONF / f"{name}.yaml").read_text()
]
"""Choices with a factory of their own; the others are any of Avalanche's plugins."""


@pytest.mark.parametrize("choice", OWN)
def test_a_choice_names_all_settings_of_its_strategy_and_describes_itself(choice: str) -> None:
    text = (CONF / f"{choice}.yaml").read_text()
    assert re.match(r"# .{20,98}\n", text)
    node = OmegaConf.create(text)
    parameters = inspect.signature(get_object(node._target_)).parameters
    assert all(each.kind is each.KEYWORD_ONLY for each in parameters.values())
    assert set(node) - FOR_FEDLEARN == set(parameters) - {"training"}
    assert isinstance(STRATEGIES[choice](training=training_for(choice)), AvalancheContinual)


@pytest.mark.parametrize("choice", ["ewc", "si", "lwf", "mas", "replay", "der_plus_plus", "agem"])
def test_a_choices_values_are_its_strategys_defaults(choice: str) -> None:
    node = OmegaConf.load(CONF / f"{choice}.yaml")
    parameters = inspect.signature(get_object(node._target_)).parameters
    for name, value in node.items():
        if name not in FOR_FEDLEARN:
            assert value == parameters[name].default


def test_der_is_der_plus_plus_without_labels() -> None:
    assert OmegaConf.load(CONF / "der.yaml").beta == 0
    assert OmegaConf.load(CONF / "der_plus_plus.yaml").beta > 0


BAD = [
    (ewc, {"ewc_lambda": -1}, "continual.ewc_lambda=-1: must be at least 0"),
    (ewc, {"ewc_lambda": math.nan}, "continual.ewc_lambda=nan: must be at least 0"),
    (ewc, {"mode": "both"}, "continual.mode=both: must be one of separate, online"),
    (ewc, {"anchor": "mean"}, "continual.anchor=mean: must be one of local, global"),
    (
        ewc,
        {"decay_factor": 0.5},
        "continual.decay_factor=0.5: only mode=online decays; use null",
    ),
    (
        ewc,
        {"mode": "online"},
        "continual.decay_factor=null: mode=online needs a number in [0, 1]",
    ),
    (
        ewc,
        {"mode": "online", "decay_factor": 1.5},
        "continual.decay_factor=1.5: must be in [0, 1]",
    ),
    (si, {"si_lambda": -0.1}, "continual.si_lambda=-0.1: must be at least 0"),
    (si, {"damping": 0.0}, "continual.damping=0.0: must be greater than 0"),
    (si, {"max_importance": 0}, "continual.max_importance=0: must be greater than 0"),
    (si, {"si_lambda": math.inf}, "continual.si_lambda=inf: must be at least 0"),
    (si, {"anchor": "x"}, "continual.anchor=x: must be one of local, global"),
    (lwf, {"alpha": -1}, "continual.alpha=-1: must be at least 0"),
    (lwf, {"temperature": 0}, "continual.temperature=0: must be greater than 0"),
    (mas, {"lambda_reg": -1}, "continual.lambda_reg=-1: must be at least 0"),
    (mas, {"alpha": 2}, "continual.alpha=2: must be in [0, 1]"),
    (replay, {"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    (replay, {"memory_batch_size": 0}, "continual.memory_batch_size=0: must be at least 1"),
    (der_plus_plus, {"alpha": -1}, "continual.alpha=-1: must be at least 0"),
    (der_plus_plus, {"beta": -1}, "continual.beta=-1: must be at least 0"),
    (der_plus_plus, {"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    (der_plus_plus, {"memory_batch_size": 0}, "continual.memory_batch_size=0: must be at least 1"),
    (agem, {"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    (agem, {"sample_size": 0}, "continual.sample_size=0: must be at least 1"),
]


@pytest.mark.parametrize(("strategy", "settings", "message"), BAD)
def test_a_bad_setting_is_named_in_one_line(strategy, settings, message) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        strategy(training=TRAINING, **settings)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_may_be_sent_to_another_process(name: str) -> None:
    strategy = built(name)
    one, other = model_for(strategy), model_for(strategy)
    live(strategy, one, stream_for(name))
    live(pickle.loads(pickle.dumps(strategy)), other, stream_for(name))
    assert gap(one, other) == 0.0


def test_choosing_a_strategy_does_not_import_avalanche() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from lone_client import STRATEGIES, training_for
for name in {OWN}:
    STRATEGIES[name](training=training_for(name))
sys.exit("avalanche" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_parameters_of_any_optimiser_train() -> None:
    training = TRAINING.__class__(torch.optim.AdamW, num_classes=10)
    model, before = mlp(), mlp()
    live(STRATEGIES["der_plus_plus"](training=training), model, split(2))
    assert gap(model, before) > 0
