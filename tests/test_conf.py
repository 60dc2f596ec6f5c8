"""Every YAML file under conf/: it says what it is, composes, and builds what it names."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedlearn.augmentation import Augmentation
from fedlearn.cli import main
from fedlearn.commands.dry_run import estimate, time_step
from fedlearn.config.checks import SUPPLIED
from fedlearn.config.choices import (
    MAIN,
    Choice,
    conf_dir,
    default_choices,
    describe,
    find_choices,
    keys,
)
from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import Experiment, build, prepare
from fedlearn.config.schema import GROUPS, Augment, Local, Settings
from fedlearn.deployment.folder import init

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("FEDLEARN_DATA", REPOSITORY / ".." / "shared" / "data"))
CHOICES = [choice for choices in find_choices().values() for choice in choices]
SMALL = {
    "dataset": "synthetic",
    "dataset.input_shape": "[3,16,16]",
    "dataset.samples_per_class": "20",
    "dataset.test_samples_per_class": "2",
    "continual": "naive",
    "tracker": "none",
}


def small(**chosen: str) -> Experiment:
    """Build an experiment on little data, with the choices given."""
    own = "dataset" in chosen  # then those of the little data do not fit
    little = {key: value for key, value in SMALL.items() if not (own and "dataset" in key)}
    overrides = {**little, **chosen}
    return build(prepare(compose([f"{key}={value}" for key, value in overrides.items()])))


def on_its_own_data(choice: Choice) -> Experiment:
    """Build an experiment on the data that a dataset or a preset names."""
    overrides = [f"{choice.group}={choice.name}", "continual=naive", "tracker=none"]
    if choice.name == "diabetes":  # a regression, which the default scenario does not fit
        overrides.append("scenario=permuted_diabetes")
    if choice.name in (
        "image_folder",
        "avalanche_benchmark",
        "table",
        "arrays",
        "text",
        "hugging_face",
    ):
        pytest.skip("has no data of its own; its own tests build a run on some")
    if "root" not in compose(overrides).tree["dataset"]:
        return build(prepare(compose(overrides)))
    try:
        return build(prepare(compose([*overrides, f"dataset.root={DATA.resolve()}"])))
    except ConfigError as error:
        if not str(error).startswith(f"dataset.root={DATA.resolve()}: "):
            raise
        pytest.skip(f"its files are not in $FEDLEARN_DATA or ../shared/data: {error}")


@pytest.mark.parametrize("path", sorted(conf_dir().glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_file_says_what_it_is_in_its_first_line(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first == "# @package _global_" or first.removeprefix("# ") == describe(path)
    assert 10 <= len(describe(path)) <= 110


def _fitting(choice: Choice) -> dict[str, str]:
    """Return what a choice can work with, where the little data or the default scenario is not."""
    if choice.name == "char_lstm":
        text = {"dataset": "text", "dataset.path": str(REPOSITORY / "LICENSE")}
        return {**text, "dataset.length": "10", "scenario": "domain_incremental"}
    if choice.group != "continual":
        return {}
    kinds = compose([f"continual={choice.name}"]).tree["continual"].get("kinds")
    return {"scenario": f"{kinds[0]}_incremental"} if kinds else {}


def _on_files(choice: Choice, folder: Path) -> dict[str, str]:
    """Return where the files are that a choice goes by, written into `folder`."""
    if choice.name == "from_file":
        rows = folder / "rows.json"
        rows.write_text(json.dumps([list(range(client, 200, 10)) for client in range(10)]))
        return {"partition.path": str(rows)}
    if choice.name == "trace":
        spans = folder / "spans.json"
        spans.write_text(json.dumps({str(client): [[1, 5]] for client in range(10)}))
        return {"cohort.path": str(spans)}
    if choice.name == "deployment":
        init(folder / "deployment", nodes=1, hosts=["localhost"])
        return {"runtime.connection": str(folder / "deployment")}
    if choice.name == "on_site":
        there = {"runtime": "deployment", "runtime.connection": "somewhere"}
        if choice.group == "clock":
            return there
        np.savez(folder / "server.npz", x_test=np.eye(10, dtype=np.float32), y_test=np.arange(10))
        own = {"dataset.path": str(folder / "server.npz"), "dataset.num_classes": "10"}
        return {**there, "dataset": "arrays", **own}
    if choice.name in ("natural", "sources"):  # go by tags
        tagged = folder / "tagged.npz"
        known = dict.fromkeys(("tag_writer", "tag_domain"), np.arange(40) % 20)
        part = {"x": np.zeros((40, 3), np.float32), "y": np.arange(40) % 10, **known}
        np.savez(tagged, **{f"{key}_{of}": part[key] for key in part for of in ("train", "test")})
        return {"dataset": "arrays", "dataset.path": str(tagged)}
    return {}


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.group}={choice.name}")
def test_every_choice_composes_and_builds(choice: Choice, tmp_path: Path) -> None:
    if choice.name == "flower":
        pytest.importorskip("flwr_datasets")
    if choice.group in ("dataset", "experiment"):
        experiment = on_its_own_data(choice)
    else:
        needed = {**_fitting(choice), **_on_files(choice, tmp_path)}
        experiment = small(**{choice.group: choice.name}, **needed)
    assert experiment.choices[choice.group] == choice.name
    assert isinstance(experiment.build_model(), nn.Module)
    assert experiment.scenario.elsewhere or experiment.scenario.shares.sizes().sum() > 0


@pytest.mark.parametrize("choice", find_choices()["model"], ids=lambda choice: choice.name)
def test_every_model_takes_a_step(choice: Choice) -> None:
    assert time_step(small(model=choice.name, **_fitting(choice))) > 0


def test_the_list_shows_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for choice in CHOICES:
        assert f"{choice.group}={choice.name} " in out
        assert choice.description in out
    for group, name in default_choices().items():
        assert name == "null" or f"{group}={name} *" in out


def test_the_list_of_one_group_shows_that_one_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "optimizer"]) == 0
    out = capsys.readouterr().out
    assert "optimizer=adam" in out
    assert "continual=" not in out


def test_shared_bases_are_no_choices() -> None:
    assert not [choice for choice in CHOICES if choice.name.startswith("_")]
    assert sorted(conf_dir().glob("*/_*.yaml"))


def test_every_group_has_choices_and_a_default() -> None:
    assert set(find_choices()) == {*GROUPS, "experiment"}
    assert set(default_choices()) == {*GROUPS, "experiment"}


def _settings(kind: type, parent: str = "") -> Iterator[str]:
    for each in dataclasses.fields(kind):
        if dataclasses.is_dataclass(each.type):
            yield from _settings(each.type, f"{parent}{each.name}.")  # type: ignore[arg-type]
        else:
            yield f"{parent}{each.name}"


def test_every_key_of_the_schema_is_documented_in_the_main_file() -> None:
    assert {key.name for key in keys()} == set(_settings(Settings))
    assert all(key.meaning and key.default for key in keys())


def test_what_the_main_file_says_is_what_is_composed() -> None:
    tree = compose().tree
    for key in keys():
        value = tree
        for part in key.name.split("."):
            value = value[part]
        if not key.default.startswith("${"):
            shown = "null" if value is None else str(value)
            assert (shown.lower() if isinstance(value, bool) else shown) == key.default


def test_a_bare_run_is_replay_on_split_digits() -> None:
    experiment = build(prepare(compose()))
    scenario = experiment.scenario
    assert (scenario.kind, scenario.num_experiences, scenario.num_clients) == ("class", 5, 10)
    assert [len(classes) for classes in scenario.classes] == [2] * 5
    assert experiment.choices == {
        "dataset": "digits",
        "scenario": "split_digits",
        "partition": "dirichlet",
        "clock": "in_step",
        "skew": "none",
        "cohort": "uniform",
        "model": "mlp",
        "continual": "replay",
        "aggregation": "fedavg",
        "optimizer": "sgd",
        "lr_schedule": "constant",
        "runtime": "inprocess",
        "tracker": "wandb",
        "experiment": "null",
    }


def test_a_scenario_brings_its_dataset_and_the_command_line_wins() -> None:
    assert compose(["scenario=split_mnist"]).choices["dataset"] == "mnist"
    for order in (1, -1):
        overrides = ["scenario=split_mnist", "dataset=synthetic"][::order]
        assert compose(overrides).choices["dataset"] == "synthetic"


def test_an_experiment_brings_its_choices_and_the_command_line_wins() -> None:
    assert compose(["experiment=split_mnist_hsu"]).choices["dataset"] == "mnist"
    changed = compose(["experiment=permuted_digits", "scenario=split_mnist", "num_clients=7"])
    assert changed.choices["scenario"] == "split_mnist"
    assert changed.choices["dataset"] == "mnist"
    assert changed.tree["num_clients"] == 7


def test_digits_bands_is_the_acceptance_protocol() -> None:
    experiment = build(prepare(compose(["experiment=digits_bands", "tracker=none"])))
    settings, scenario = experiment.settings, experiment.scenario
    assert (scenario.num_clients, scenario.num_experiences, scenario.kind) == (5, 5, "class")
    assert (settings.fraction_train, settings.rounds_per_experience) == (1.0, 10)
    assert (settings.local.epochs, settings.local.max_grad_norm) == (2, None)
    assert scenario.recipe["partition"]["alpha"] == 0.5
    assert scenario.held_out.sizes().sum() == 0
    shapes = [tuple(weight.shape) for weight in experiment.build_model().parameters()]
    assert shapes == [(100, 64), (100,), (10, 100), (10,)]
    optimizer = experiment.training.optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.1, 0.0)


def test_split_mnist_hsu_is_the_papers_setting() -> None:
    composed = compose(["experiment=split_mnist_hsu"])
    tree = composed.tree
    assert (tree["num_clients"], tree["rounds_per_experience"]) == (1, 1)
    assert (tree["local"]["epochs"], tree["local"]["batch_size"]) == (4, 128)
    assert tree["model"]["hidden_sizes"] == [400, 400]
    assert composed.choices["optimizer"] == "adam"
    assert tree["optimizer"]["lr"] == 1e-3


def test_aggregations_take_the_whole_cohort_whatever_its_size() -> None:
    for choice in find_choices()["aggregation"]:
        node = compose([f"aggregation={choice.name}"]).tree["aggregation"]
        assert node["fraction_train"] == node["fraction_evaluate"] == 1.0
        assert {node[f"min_{what}_nodes"] for what in ("train", "evaluate", "available")} == {1}


def test_the_initial_model_depends_on_the_seed_only() -> None:
    def weights(experiment: Experiment) -> torch.Tensor:
        return nn.utils.parameters_to_vector(experiment.build_model().parameters())

    state = torch.get_rng_state()
    first, again, other = small(), small(continual="replay"), small(seed="1")
    assert torch.equal(weights(first), weights(first))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert torch.equal(torch.get_rng_state(), state)


def test_heads_and_mask_follow_the_scenario() -> None:
    assert small(scenario="class_incremental").training.heads is None
    task = small(scenario="task_incremental")
    assert task.training.heads == task.scenario.classes
    masked = small(**{"scenario": "class_incremental", "head.mask": "true"})
    assert masked.training.mask_loss == masked.scenario.classes
    assert small().training.mask_loss is None


def test_what_fedlearn_fills_in_is_not_in_any_file() -> None:
    for group, names in SUPPLIED.items():
        for choice in find_choices()[group]:
            assert not set(names) & set(compose([f"{group}={choice.name}"]).tree[group])


def test_the_configuration_is_found_in_a_wheel_and_in_the_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "fedlearn"
    (package / "conf").mkdir(parents=True)
    monkeypatch.setattr("fedlearn.__file__", str(package / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=MAIN):
        conf_dir()
    source = tmp_path / "site" / "conf"
    source.mkdir()
    (source / MAIN).touch()
    assert conf_dir() == source
    (package / "conf" / MAIN).touch()
    assert conf_dir() == package / "conf"


def test_local_settings_are_typed() -> None:
    settings = prepare(compose(["local.max_grad_norm=1", "tracker=none"])).settings
    assert settings.local == Local(
        epochs=2,
        steps=None,
        batch_size=8,
        loss=None,
        label_smoothing=0.0,
        class_balance=None,
        augment=Augment(flip=False, crop=0, rotation=0.0),
        freeze=[],
        precision="float32",
        max_grad_norm=1.0,
        max_loss=None,
        gradient_metrics=False,
    )
    assert isinstance(settings.local.max_grad_norm, float)


def test_options_of_local_training_reach_the_clients() -> None:
    plain = small().training
    assert (plain.augment, plain.frozen, plain.max_loss) == (None, (), math.inf)
    training = small(
        **{
            "local.loss": "bce",
            "local.class_balance": "0.9",
            "local.augment": "{flip:true,crop:2,rotation:10}",
            "local.freeze": "['features.*']",
            "local.precision": "bfloat16",
            "local.max_loss": "50",
            "local.gradient_metrics": "true",
        }
    ).training
    assert (training.loss, training.class_balance, training.frozen) == ("bce", 0.9, ("features.*",))
    assert training.augment == Augmentation(flip=True, crop=2, rotation=10.0)
    assert (training.precision, training.max_loss, training.gradient_metrics) == (
        "bfloat16",
        50.0,
        True,
    )


def test_a_dry_run_counts_fixed_steps() -> None:
    asked = {"num_clients": "4", "rounds_per_experience": "2", "partition": "iid"}
    cost = estimate(small(**asked, **{"local.steps": "7"}))
    assert cost.steps == 7 * cost.turns
    assert estimate(small(**asked)).steps != cost.steps


def test_frozen_parameters_are_those_that_the_patterns_name() -> None:
    model = small(**{"local.freeze": "['*bias']"}).build_model()
    assert {name: each.requires_grad for name, each in model.named_parameters()} == {
        name: not name.endswith("bias") for name, _ in model.named_parameters()
    }
