"""The YAML choices of dataset, partition and scenario, under a primary config of their own."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig

from scenarios.build import build_scenario
from scenarios.datasets.digits import digits
from scenarios.datasets.synthetic import synthetic
from scenarios.streams import ClassIncremental, Permuted, Rotated, TaskIncremental

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(
    f"{path.parent.name}/{path.stem}"
    for group in ("dataset", "partition", "scenario")
    for path in (CONF / group).glob("*.yaml")
)
PRIMARY = f"""
defaults:
  - dataset: digits
  - partition: dirichlet
  - scenario: class_incremental
  - _self_
hydra:
  searchpath: ["{CONF.as_uri()}"]
"""

Composer = Callable[..., DictConfig]


@pytest.fixture
def composer(tmp_path: Path) -> Composer:
    (tmp_path / "config.yaml").write_text(PRIMARY)

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("config", list(overrides))

    return composed


def arguments(node: DictConfig) -> dict[str, Any]:
    return {str(key): value for key, value in node.items() if key not in ("_target_", "held_out")}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_describes_itself_in_its_first_line(choice: str) -> None:
    first, *rest = (CONF / f"{choice}.yaml").read_text().splitlines()
    assert first.startswith("# ")
    assert 20 < len(first) <= 100
    assert rest


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_sets_every_argument_of_its_target_to_the_default(
    choice: str, composer: Composer
) -> None:
    group, name = choice.split("/")
    node = composer(f"{group}={name}")[group]
    parameters = inspect.signature(get_object(node._target_)).parameters
    given = arguments(node)
    assert given.keys() == parameters.keys()
    for key, value in given.items():
        if (choice, key) != ("dataset/mnist", "expected_digest"):
            default = parameters[key].default
            assert value == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("scenario/")])
def test_a_scenario_builds_a_stream_and_sets_data_aside(choice: str, composer: Composer) -> None:
    node = composer(f"scenario={choice.split('/')[1]}").scenario
    assert node.held_out == 0.1
    stream = instantiate({"_target_": node._target_, **arguments(node)}, _convert_="all")
    assert isinstance(stream, ClassIncremental | TaskIncremental | Permuted | Rotated)
    assert dataclasses.replace(stream) == stream


@pytest.mark.parametrize("style", ["split", "task", "domain", "permuted", "rotated"])
@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_a_named_scenario_brings_its_dataset(style: str, dataset: str, composer: Composer) -> None:
    node = composer(f"scenario={style}_{dataset}").dataset
    assert node._target_ == f"scenarios.datasets.{dataset}.{dataset}"


def test_the_command_line_wins_over_a_named_scenario(composer: Composer) -> None:
    for overrides in (
        ("scenario=split_mnist", "dataset=synthetic"),
        ("dataset=synthetic", "scenario=split_mnist"),
        ("scenario=class_incremental", "dataset=synthetic"),
    ):
        assert composer(*overrides).dataset._target_ == "scenarios.datasets.synthetic.synthetic"
    assert composer("scenario=split_digits", "scenario.num_experiences=2").scenario == {
        **composer("scenario=class_incremental").scenario,
        "num_experiences": 2,
    }


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological", "quantity"])
@pytest.mark.parametrize("scenario", ["split_digits", "rotated_digits"])
def test_choices_build_a_scenario_together(
    partition: str, scenario: str, composer: Composer
) -> None:
    config = composer(f"scenario={scenario}", f"partition={partition}")
    built = build_scenario(
        name=scenario,
        dataset=digits(**arguments(config.dataset)),
        stream=instantiate(
            {"_target_": config.scenario._target_, **arguments(config.scenario)}, _convert_="all"
        ),
        partition=instantiate(config.partition, _convert_="all"),
        num_clients=5,
        held_out=config.scenario.held_out,
        seed=0,
    )
    assert (built.num_clients, built.num_experiences) == (5, 5)


def test_synthetic_takes_the_shape_as_yaml_gives_it(composer: Composer) -> None:
    node = composer("dataset=synthetic", "dataset.input_shape=[2,3]").dataset
    assert instantiate(node, _convert_="all").digest == synthetic(input_shape=(2, 3)).digest
