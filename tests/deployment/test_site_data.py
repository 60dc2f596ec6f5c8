"""Data that stays where it is: each node reads its own, and the server none of it."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedlearn import records
from fedlearn.commands.run import importable
from fedlearn.config.composition import Composed, compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, prepare
from fedlearn.deployment.configuration import Configuration
from fedlearn.deployment.node import Node, at_site
from fedlearn.deployment.site_clock import SiteClock
from fedlearn.run import make_client, make_parts
from fedlearn.runtimes.task import task_identity
from fedlearn.tracking.tracker import NoTracker

Weights = dict[str, Tensor]
STORES = ("x_train", "y_train")
CLASSES = 4
RUN = [
    "dataset=arrays",
    f"dataset.num_classes={CLASSES}",
    "scenario=class_incremental",
    "scenario.num_experiences=2",
    "partition=on_site",
    "num_clients=3",
    "engine=functional",
    "continual=naive",
    "rounds_per_experience=1",
    "tracker=none",
    "runtime=deployment",
    "runtime.connection=somewhere",
]


def samples(labels: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 5 samples of each label."""
    y = np.repeat(labels, 5)
    rng = np.random.default_rng(seed)
    return rng.normal(y[:, None], 1.0, (len(y), 6)).astype(np.float32), y


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    """Three sites' files; none has all classes, and the last one has a class to itself."""
    paths = []
    for site, labels in enumerate(([0, 1], [1, 2], [0, 3])):
        x, y = samples(labels, site)
        np.savez(tmp_path / f"site{site}.npz", x_train=x, y_train=y)
        paths.append(tmp_path / f"site{site}.npz")
    return paths


@pytest.fixture
def server(tmp_path: Path) -> Path:
    x, y = samples(list(range(CLASSES)), 9)
    np.savez(tmp_path / "server.npz", x_test=x, y_test=y)
    return tmp_path / "server.npz"


def at(site: int, path: Path, server: Path) -> Composed:
    """Return the run's configuration as a node makes it its own."""
    composed = compose([*RUN, f"dataset.path={server}"])
    tree = composed.tree
    tree["dataset"] = at_site(tree["dataset"], "arrays", str(path))
    tree["partition"]["client"] = site
    return composed


def test_a_node_has_its_own_samples_and_the_server_has_none(
    sites: list[Path], server: Path
) -> None:
    at_server = build(prepare(compose([*RUN, f"dataset.path={server}"])))
    assert at_server.scenario.elsewhere
    assert int(at_server.scenario.shares.sizes().sum()) == 0
    assert [len(each) for each in at_server.scenario.test_stream()] == [10, 10]
    for site, path in enumerate(sites):
        scenario = build(prepare(at(site, path, server))).scenario
        assert not scenario.elsewhere
        sizes = scenario.shares.sizes()
        held = scenario.held_out.sizes()
        assert int((sizes + held)[site].sum()) == 10
        assert int(sizes.sum() - sizes[site].sum()) == 0
        # what an experience is about is the same everywhere
        assert scenario.classes == at_server.scenario.classes
        assert scenario.num_classes == CLASSES
        assert scenario.input_shape == at_server.scenario.input_shape


def test_models_are_equal_everywhere(sites: list[Path], server: Path) -> None:
    at_server = build(prepare(compose([*RUN, f"dataset.path={server}"]))).build_model()
    for site, path in enumerate(sites):
        client = make_client(build(prepare(at(site, path, server))))
        for one, other in zip(client.model.parameters(), at_server.parameters(), strict=True):
            assert torch.equal(one, other)


def test_an_answer_that_nobody_could_give_is_not_refused_for_its_number_of_samples(
    sites: list[Path], server: Path
) -> None:
    experiment = build(prepare(compose([*RUN, f"dataset.path={server}"])))
    made, _ = make_parts(experiment, NoTracker())
    assert made._most_examples(0, 1) > 10**9
    assert (made._sizes == 1).all()


def test_a_loader_of_ones_own_is_taken_by_its_name(tmp_path: Path) -> None:
    assert at_site({"_target_": "x", "path": None}, "arrays", "mine.data:load") == {
        "_target_": "mine.data.load"
    }
    assert at_site({"_target_": "x", "root": "data"}, "mnist", str(tmp_path)) == {
        "_target_": "x",
        "root": str(tmp_path),
    }
    with pytest.raises(ConfigError, match="--data=there: dataset=digits reads no files; "):
        at_site({"_target_": "x"}, "digits", "there")


def test_a_data_set_that_finds_its_classes_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="partition=on_site: dataset digits takes its classes"):
        build(prepare(compose([*RUN[2:], "dataset=digits"])))


@pytest.mark.parametrize("group", ["partition", "clock"])
def test_a_simulation_has_no_sites(group: str) -> None:
    with pytest.raises(ConfigError, match=f"{group}=on_site: is for runtime=deployment, "):
        build(prepare(compose([f"{group}=on_site"])))


def test_the_server_needs_something_to_test_on(sites: list[Path]) -> None:
    with pytest.raises(ConfigError, match="the server needs test samples"):
        build(prepare(compose([*RUN, f"dataset.path={sites[0]}"])))


def test_a_node_without_the_runs_files_says_so_in_its_reply(tmp_path: Path, server: Path) -> None:
    node = Node(0, data=str(tmp_path / "nowhere.npz"))
    composed = compose([*RUN, f"dataset.path={server}"])
    told = Configuration("run", "0", composed.tree, composed.choices)
    with task_identity():
        message = Message(RecordDict(), dst_node_id=1, message_type="query")
    with pytest.raises(ConfigError, match=r"nowhere.npz: cannot be read"):
        node.answer(message, told, RecordDict())


# --- data that arrive while a run goes on -------------------------------------------------------


def trained(node: Node, told: Configuration, rounds: int, before: Callable[[int], None]) -> Weights:
    """Return the weights of one client's rounds after one another, as the server would ask."""
    with importable(Path.cwd()):
        model = build(prepare(told.composed)).build_model()
    weights, buffers = records.parameters_of(model), records.buffers_of(model)
    state = RecordDict()
    for server_round in range(1, rounds + 1):
        before(server_round)
        config = ConfigRecord({records.SERVER_ROUND: server_round})
        content = RecordDict({"arrays": records.to_arrays(weights), "config": config})
        content = records.addressed(content, records.to_arrays(buffers), server_round)
        with task_identity():
            message = Message(content, dst_node_id=1, message_type="train")
            records.acknowledge(message, server_round - 1)
            reply = node.answer(message, told, state)
        weights = records.to_tensors(reply.content["arrays"])
    return weights


def test_a_part_that_arrives_begins_the_next_experience(tmp_path: Path, server: Path) -> None:
    """As if all had been there, and the site had called; the replayed samples among it."""
    for part, labels in enumerate(([0, 1], [2, 3])):
        x, y = samples(labels, part)
        np.savez(tmp_path / f"part{part}.npz", x_train=x, y_train=y)
    run = [*RUN, f"dataset.path={server}", "clock=on_site", "rounds_per_experience=2"]
    run += ["continual=replay", "num_clients=1"]
    composed = compose(run)
    told = Configuration("run", "0", composed.tree, composed.choices)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    for part in (0, 1):
        shutil.copy(tmp_path / f"part{part}.npz", whole / f"{part}.npz")
    joined = {k: np.concatenate([np.load(p)[k] for p in sorted(whole.iterdir())]) for k in STORES}
    np.savez(tmp_path / "joined.npz", **joined)

    def arrive(server_round: int) -> None:
        if server_round in (1, 3):
            part = server_round // 2
            shutil.copy(tmp_path / f"part{part}.npz", parts / f"{part}.npz")

    def call(server_round: int) -> None:
        if server_round == 3:
            SiteClock().advanced(None, None, date.today()).write(tmp_path / "called")

    (tmp_path / "called").mkdir()
    (tmp_path / "arrived").mkdir()
    called = Node(0, data=str(tmp_path / "joined.npz"), folder=tmp_path / "called")
    arrived = Node(0, data=str(parts), folder=tmp_path / "arrived")
    one, other = trained(called, told, 4, call), trained(arrived, told, 4, arrive)
    assert all(torch.equal(one[name], other[name]) for name in one)
    stayed = Node(0, data=str(tmp_path / "joined.npz"), folder=tmp_path / "arrived" / "none")
    still = trained(stayed, told, 4, lambda _: None)
    assert not all(torch.equal(one[name], still[name]) for name in one)
