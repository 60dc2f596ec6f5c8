"""The YAML choices of what a scenario is built from, under a primary config of their own."""

import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from fedlearn.types import Scenario
from scenarios.build import build_scenario
from scenarios.clocks import Clock
from scenarios.dataset import Dataset
from scenarios.datasets.digits import digits
from scenarios.datasets.synthetic import synthetic
from scenarios.skews import Skew

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(
    f"{path.parent.name}/{path.stem}"
    for group in ("dataset", "partition", "scenario", "clock", "skew")
    for path in (CONF / group).glob("*.yaml")
)
PRIMARY = f"""
defaults:
  - dataset: digits
  - partition: dirichlet
  - scenario: class_incremental
  - clock: in_step
  - skew: none
  - _self_
hydra:
  searchpath: ["{CONF.as_uri()}"]
"""

FREE = {("dataset/mnist", "expected_digest"), ("partition/flower", "partitioner")}
"""Settings whose value is no default of the code."""

VARIANTS = {
    "clock/churn": {"joining", "leaving", "pausing"},
    "clock/shuffled": {"order"},
    "clock/staggered": {"delay"},
    "clock/uneven": {"spread"},
    "skew/noisy_labels": {"label_noise"},
    "skew/rotated": {"rotation"},
}
"""Choices that are other settings of what another choice sets to its defaults."""

TAGGED = {"scenario/sources": "domain", "partition/natural": "writer"}
"""Choices that go by a tag of the samples, which one."""

Composer = Callable[..., DictConfig]


@pytest.fixture
def composer(tmp_path: Path) -> Composer:
    (tmp_path / "config.yaml").write_text(PRIMARY)

    def composed(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("config", list(overrides))

    return composed


def keys(node: DictConfig) -> set[str]:
    return {str(key) for key in node} - {"_target_", "_recursive_", "held_out"}


def arguments(node: DictConfig) -> dict[str, Any]:
    return {key: node[key] for key in keys(node)}


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
    assert keys(node) == parameters.keys()
    own = OmegaConf.load(CONF / f"{choice}.yaml")
    changed = set(own) if "defaults" in own else VARIANTS.get(choice, set())
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and (choice, key) not in FREE:
            assert OmegaConf.is_missing(node, key)
        elif (choice, key) not in FREE and key not in changed:
            default = parameter.default
            assert node[key] == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("choice", sorted(VARIANTS))
def test_a_variant_changes_what_it_says(choice: str, composer: Composer) -> None:
    group, name = choice.split("/")
    node = composer(f"{group}={name}")[group]
    parameters = inspect.signature(get_object(node._target_)).parameters
    changed = {key for key in keys(node) if node[key] != parameters[key].default}
    assert changed == VARIANTS[choice]


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("scenario/")])
def test_a_scenario_builds_a_stream_and_sets_data_aside(choice: str, composer: Composer) -> None:
    node = composer(f"scenario={choice.split('/')[1]}").scenario
    assert node.held_out == 0.1
    stream = instantiate({"_target_": node._target_, **arguments(node)}, _convert_="all")
    assert callable(stream.lay_out)
    assert dataclasses.replace(stream) == stream
    assert stream.kind in ("class", "task", "domain")  # so that a run can be refused before loading


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


def assemble(config: DictConfig, dataset: Dataset, num_clients: int = 5) -> Scenario:
    """Build the scenario that a configuration names, on a dataset."""
    stream = {"_target_": config.scenario._target_, **arguments(config.scenario)}
    return build_scenario(
        name="toy",
        dataset=dataset,
        stream=instantiate(stream, _convert_="all"),
        partition=instantiate(config.partition, _convert_="all"),
        num_clients=num_clients,
        held_out=config.scenario.held_out,
        seed=0,
        clock=instantiate(config.clock, _convert_="all"),
        skew=instantiate(config.skew, _convert_="all"),
    )


def tagged() -> Dataset:
    """Colour images of ten classes, five domains and twenty writers."""
    plain = synthetic(10, (3, 8, 8), samples_per_class=30, test_samples_per_class=10)
    tags = {
        name: (torch.arange(300) % count, torch.arange(100) % count)
        for name, count in (("domain", 5), ("writer", 20))
    }
    return dataclasses.replace(plain, tags=tags)


@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("dataset/")])
def test_every_choice_builds_a_scenario_with_the_others_as_they_are(
    choice: str, composer: Composer, tmp_path: Path
) -> None:
    group, name = choice.split("/")
    overrides = [f"{group}={name}", f"{group}.by={TAGGED[choice]}" if choice in TAGGED else ""]
    if choice == "partition/on_site":
        pytest.skip("shares nothing out: tests/deployment/test_site_data.py")
    if choice == "partition/flower":
        pytest.importorskip("flwr_datasets")
        overrides += ["++num_clients=5", "++seed=0"]
    if choice == "partition/from_file":
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([list(range(client, 300, 5)) for client in range(5)]))
        overrides.append(f"partition.path={path}")
    config = composer(*filter(None, overrides))
    built = assemble(config, tagged())
    assert built.num_clients == 5
    assert built.num_experiences == config.scenario.get("num_experiences", 5)
    assert built.shares.sizes().sum() + built.held_out.sizes().sum() > 0
    assert all(len(topic.test_rows) for topic in built.topics)
    assert built.manifest() == assemble(config, tagged()).manifest()


@pytest.mark.parametrize(
    "partition", ["iid", "dirichlet", "pathological", "quantity", "log_normal"]
)
@pytest.mark.parametrize("scenario", ["split_digits", "rotated_digits"])
def test_choices_build_a_scenario_together(
    partition: str, scenario: str, composer: Composer
) -> None:
    config = composer(f"scenario={scenario}", f"partition={partition}")
    built = assemble(config, digits(**arguments(config.dataset)))
    assert (built.num_clients, built.num_experiences) == (5, 5)


def test_clocks_and_skews_are_by_default_none_at_all(composer: Composer) -> None:
    config = composer()
    assert instantiate(config.clock) == Clock()
    assert instantiate(config.skew) == Skew()


def test_synthetic_takes_the_shape_as_yaml_gives_it(composer: Composer) -> None:
    node = composer("dataset=synthetic", "dataset.input_shape=[2,3]").dataset
    assert instantiate(node, _convert_="all").digest == synthetic(input_shape=(2, 3)).digest
