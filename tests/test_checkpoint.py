"""Checkpoints: whole or not there, and what is read is what was written."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from executors import Remembering
from federation import federate, make_scenario, norm_model
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fedlearn.aggregation_state import UnsavableError, bring_back, capture
from fedlearn.checkpoint import Checkpoints, NoCheckpointError
from fedlearn.client_state import ClientState, UsedTurn
from fedlearn.config.choices import find_choices
from fedlearn.config.composition import compose
from fedlearn.config.experiment import prepare
from fedlearn.grids import used_turns
from fedlearn.records import to_arrays
from fedlearn.tensor_files import read_tensors, write_tensors
from fedlearn.types import State
from strategies.aggregation.fedavg import FedAvg

CPU = torch.device("cpu")
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool]


def turn(client_id: int, server_round: int) -> UsedTurn:
    """Something that a client may keep after a round; it depends on both."""
    number = 100.0 * client_id + server_round
    state = State(
        {"w": torch.full((30,), number), "kept": torch.arange(client_id), "odd": torch.ones(())},
        {"turns": server_round, "share": number / 3, "name": "é", "raw": b"\0\xff", "list": [1, 2]},
    )
    return UsedTurn(state, server_round, client_id % 3)


def write(checkpoints: Checkpoints, server_round: int, *clients: int, lasting: bool = False):
    checkpoints.write(
        server_round,
        {"w": torch.full((50,), float(server_round))},
        {"round": server_round, "nan": float("nan")},
        {client_id: turn(client_id, server_round) for client_id in clients},
        lasting,
    )


def same(one: UsedTurn, other: UsedTurn) -> bool:
    mine, theirs = one.state, other.state
    return (
        (one.server_round, one.experience) == (other.server_round, other.experience)
        and mine.values == theirs.values
        and list(mine.tensors) == list(theirs.tensors)
        and all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)
    )


def check_newest(run_dir: Path, server_round: int, latest: dict[int, int]) -> Checkpoints:
    """Check that the newest whole checkpoint is that of a round, and which turns it holds."""
    found = Checkpoints(run_dir).newest(CPU)
    assert found.server_round == found.values["round"] == server_round
    assert found.tensors["w"].eq(server_round).all()
    assert found.turns.keys() == latest.keys()
    assert all(same(found.turns[k], turn(k, latest[k])) for k in latest)
    return found.source


# --- files --------------------------------------------------------------------------------------


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_tensors_of_any_type_and_shape_survive(shapes, seed, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{at}/é": (10 * torch.randn(shape, generator=generator)).to(TYPES[at % len(TYPES)])
        for at, shape in enumerate(shapes)
    }
    tensors |= {"turned": torch.arange(6).view(2, 3).t(), "same": tensors.get("0/é", torch.ones(2))}
    path = tmp_path_factory.mktemp("files") / "t.safetensors"
    sha = write_tensors(path, tensors)
    for found in (read_tensors(path, sha, CPU), load_file(path)):  # and others can read it
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


# --- folders ------------------------------------------------------------------------------------


def test_a_client_is_written_once_a_turn_and_found_in_every_later_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    latest: dict[int, int] = {}
    for server_round, clients in enumerate(([0, 1, 2, 3], [1], [], [2, 3], [1, 5]), start=1):
        write(checkpoints, server_round, *clients)
        latest |= dict.fromkeys(clients, server_round)
        check_newest(tmp_path, server_round, latest)
    assert checkpoints.rounds() == [4, 5]
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "clients").glob("*.json"))
    assert files == ["round-1.json", "round-2.json", "round-4.json", "round-5.json"]


def test_the_last_two_and_the_lasting_ones_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for server_round in range(1, 10):
        write(checkpoints, server_round, server_round % 3, lasting=server_round in (3, 6))
    assert checkpoints.rounds() == [3, 6, 8, 9]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"clients", "round-3", "round-6", "round-8", "round-9"}
    for damaged in (9, 8, 6):  # the lasting ones have their clients still
        shutil.rmtree(tmp_path / "checkpoints" / f"round-{damaged}")
    check_newest(tmp_path, 3, {0: 3, 1: 1, 2: 2})


@given(cohorts=st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=1, max_size=12))
@settings(deadline=None, max_examples=20)
def test_files_of_clients_hold_no_more_than_twice_what_clients_keep(cohorts, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(run_dir)
    latest: dict[int, int] = {}
    turns: dict[int, UsedTurn] = {}
    for server_round, cohort in enumerate(cohorts, start=1):
        latest |= dict.fromkeys(cohort, server_round)
        turns |= {k: turn(k, server_round) for k in cohort}
        again = checkpoints.crowded(cohort)
        assert not again & cohort
        told = {k: turns[k] for k in cohort | again}
        checkpoints.write(
            server_round,
            {"w": torch.full((50,), float(server_round))},
            {"round": server_round},
            told,
            False,
        )
        checkpoints = check_newest(run_dir, server_round, latest)  # as after a crash
        folder = run_dir / "checkpoints"
        whole = json.loads((folder / f"round-{server_round}" / "server.json").read_text())
        sizes = [
            len(json.loads((folder / "clients" / f"round-{home}.json").read_text()))
            for home in whole["clients"]
        ]
        assert sum(sizes) <= 2 * len(latest)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A run's directory with two checkpoints, the later of which needs the earlier's clients."""
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1, 0, 1)
    write(checkpoints, 2, 1)
    return tmp_path


OWN = [
    "round-2/server.safetensors",
    "round-2/server.json",
    "round-2/manifest.json",
    "clients/round-2.safetensors",
    "clients/round-2.json",
]


@pytest.mark.parametrize("name", OWN)
def test_a_flipped_bit_is_noticed_wherever_it_is(two, name):
    path = two / "checkpoints" / name
    whole = path.read_bytes()
    generator = random.Random(name)
    for _ in range(60):
        at, bit = generator.randrange(len(whole)), generator.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        found = Checkpoints(two).newest(CPU)
        if found.server_round == 2:  # white space of the manifest
            assert name.endswith("manifest.json")
            check_newest(two, 2, {0: 1, 1: 2})
        else:
            assert len(found.damaged) == 1
            assert "the checkpoint of round 2 is damaged" in found.damaged[0]
            check_newest(two, 1, {0: 1, 1: 1})
    path.write_bytes(whole)
    check_newest(two, 2, {0: 1, 1: 2})


@pytest.mark.parametrize("name", OWN)
def test_a_file_that_is_cut_off_or_gone_is_noticed(two, name):
    path = two / "checkpoints" / name
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        check_newest(two, 1, {0: 1, 1: 1})
    path.unlink()
    check_newest(two, 1, {0: 1, 1: 1})


def test_without_a_whole_one_there_is_none(two):
    (two / "checkpoints" / "clients" / "round-1.json").write_text("{}")
    before = sorted(two.rglob("*"))
    with pytest.raises(NoCheckpointError, match=r"round 2 is damaged .*; .* round 1 is damaged"):
        Checkpoints(two).newest(CPU)
    assert sorted(two.rglob("*")) == before
    with pytest.raises(NoCheckpointError, match="there is no checkpoint"):
        Checkpoints(two / "nowhere").newest(CPU)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", "clients/../round-1/server.json"])
def test_a_manifest_that_names_other_files_is_damaged(two, name):
    path = two / "checkpoints" / "round-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = "0"
    path.write_text(json.dumps(manifest))
    check_newest(two, 1, {0: 1, 1: 1})


def test_what_was_left_half_written_is_in_nobodys_way(two):
    folder = two / "checkpoints"
    (folder / "round-3.tmp").mkdir()
    (folder / "round-3.tmp" / "server.json").write_text("{")
    (folder / "clients" / "round-3.json.tmp").write_text("{")
    (folder / "clients" / "round-3.safetensors").write_text("")
    checkpoints = check_newest(two, 2, {0: 1, 1: 2})
    write(checkpoints, 3, 0)
    check_newest(two, 3, {0: 3, 1: 2})
    assert not list(folder.rglob("*.tmp"))


def in_a_child(run_dir: Path, body, *given) -> multiprocessing.Process:
    """Run `body` in a process of its own, with the run's checkpoints as it finds them."""

    def work():
        checkpoints = Checkpoints(run_dir)
        last = checkpoints.newest(CPU).server_round if checkpoints.rounds() else 0
        body(checkpoints, last, *given)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def write_little_room(checkpoints: Checkpoints, last: int, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        checkpoints.write(last + 1, {"w": torch.zeros(size)}, {}, {0: turn(0, last + 1)}, False)
    except OSError:
        os._exit(7)


@pytest.mark.parametrize("size", [1024, 100_000])
def test_a_disk_that_is_full_leaves_what_was_there(two, size):
    child = in_a_child(two, write_little_room, size)
    child.join()
    assert child.exitcode == 7
    checkpoints = check_newest(two, 2, {0: 1, 1: 2})
    write(checkpoints, 3, 0)
    check_newest(two, 3, {0: 3, 1: 2})


def write_for_ever(checkpoints: Checkpoints, last: int, told) -> None:
    while True:
        last += 1
        cohort = [k for k in range(4) if (last + k) % 3 == 0]
        write(checkpoints, last, *cohort, lasting=last % 7 == 0)
        told.value = last


def test_a_process_that_is_killed_while_it_writes_damages_nothing(tmp_path):
    generator = random.Random(0)
    told = multiprocessing.get_context("fork").Value("q", 0)
    for _ in range(40):
        before = told.value
        child = in_a_child(tmp_path, write_for_ever, told)
        while told.value == before:
            time.sleep(1e-3)
        time.sleep(0.05 * generator.random())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        found = Checkpoints(tmp_path).newest(CPU)
        assert not found.damaged
        assert found.server_round in (told.value, told.value + 1)
        for client_id, kept in found.turns.items():
            assert same(kept, turn(client_id, kept.server_round))
            assert (kept.server_round + client_id) % 3 == 0
            assert 0 <= found.server_round - kept.server_round < 3


# --- what is in them ----------------------------------------------------------------------------


def through_json(values):
    return json.loads(json.dumps(values))


def state_of(server, grid):
    """A server's state and its clients' turns, as they come back from a file."""
    tensors, values = server.state()
    return (
        ({name: each.clone() for name, each in tensors.items()}, through_json(values)),
        used_turns(grid, {int(k): r for k, r in values["acknowledged"].items()}),
    )


@pytest.mark.parametrize("name", [choice.name for choice in find_choices()["aggregation"]])
def test_every_aggregation_is_saved_and_goes_on_to_the_same_next_round(name):
    def make():
        return prepare(compose([f"aggregation={name}", "tracker=none"])).aggregation

    setting = {"scenario": make_scenario(7, 1), "build_model": norm_model}
    setting |= {"rounds_per_experience": 3}
    states = []
    unbroken, *_ = federate(
        aggregation=make(),
        **setting,
        after_round=lambda server, grid: states.append((state_of(server, grid), server.digest)),
    )
    for after, (state, digest) in enumerate(states[:-1], start=1):
        digests = []
        resumed, *_ = federate(
            aggregation=make(),
            **setting,
            restored=state,
            after_round=lambda server, grid, told=digests: told.append(server.digest),
        )
        assert digests == [told for _, told in states[after:]]
        assert digest == states[after - 1][1]
        assert resumed.digest == unbroken.digest
        assert np.array_equal(resumed.scoreboard.accuracy, unbroken.scoreboard.accuracy, True)
        assert resumed.told == unbroken.told


def test_no_later_round_changes_a_state():
    states, copies = [], []

    def note(server, grid):
        states.append(server.state())
        copies.append(
            ({n: t.clone() for n, t in states[-1][0].items()}, through_json(states[-1][1]))
        )

    aggregation = prepare(compose(["aggregation=fedadam", "tracker=none"])).aggregation
    federate(aggregation=aggregation, build_model=norm_model, after_round=note)
    assert len(states) == 4
    for (tensors, values), (copied, told) in zip(states, copies, strict=True):
        assert through_json(values) == told
        assert tensors.keys() == copied.keys()
        assert all(torch.equal(t.nan_to_num(), copied[n].nan_to_num()) for n, t in tensors.items())


def test_a_turn_that_has_begun_since_hides_no_used_one():
    """What a client goes on from is found before, in and after its next turn."""
    seen = []

    def note(server, grid):
        acknowledged = dict(server.state()[1]["acknowledged"])
        turns = used_turns(grid, acknowledged)
        assert {k: each.server_round for k, each in turns.items()} == acknowledged
        seen.append({k: each.state.tensors for k, each in turns.items()})
        for k, before in (seen[-2] if len(seen) > 1 else {}).items():
            record = grid.context(k + 1).state
            kept = ClientState(record).used(server.rounds - 1)
            if kept is not None:
                assert all(torch.equal(before[n], t) for n, t in kept.state.tensors.items())
            assert ClientState(record).used(999) is None

    federate(continual=Remembering(), after_round=note)
    assert len(seen) == 4


class Keeps(FedAvg):
    """Keeps one of everything that can be saved."""

    def __init__(self) -> None:
        super().__init__(min_train_nodes=1, min_available_nodes=1)
        self.function = lambda: None
        self.kept = {
            "array": np.arange(6.0).reshape(2, 3),
            "scalar": np.float64(0.1),
            1: torch.ones(2, dtype=torch.bfloat16),
            "1": torch.zeros(2),
            "nested": [(None, True, 3, 0.1, "text", b"bytes"), [np.int32(3)], {}],
            "record": ArrayRecord({"a": Array(np.ones(2)), "b": Array(np.zeros((0, 3)))}),
            "ours": to_arrays({"z": torch.ones(3), "a": torch.ones(1)}),
            "config": ConfigRecord({"x": 1.5, "y": [b"z"]}),
        }


def test_whatever_can_be_saved_comes_back_as_it_was():
    first, second = Keeps(), Keeps()
    first.kept["array"] += 1
    first.later = None
    tensors, values = capture(first)
    first.kept["array"] += 1  # changes no copy
    second.kept = None
    bring_back(second, tensors, through_json(values))
    kept = second.kept
    assert second.later is None
    assert list(kept) == ["array", "scalar", 1, "1", "nested", "record", "ours", "config"]
    assert np.array_equal(kept["array"], np.arange(6.0).reshape(2, 3) + 1)
    kept["array"] += 1  # may be written to
    assert isinstance(kept["scalar"], np.float64)
    assert kept["scalar"] == 0.1
    assert kept[1].dtype == torch.bfloat16
    assert torch.equal(kept[1], torch.ones(2, dtype=torch.bfloat16))
    assert torch.equal(kept["1"], torch.zeros(2))
    assert kept["nested"] == [(None, True, 3, 0.1, "text", b"bytes"), [np.int32(3)], {}]
    assert isinstance(kept["nested"][1][0], np.int32)
    assert [each.tolist() for each in kept["record"].to_numpy_ndarrays()] == [[1, 1], []]
    assert list(kept["ours"]) == ["z", "a"]
    assert dict(kept["config"]) == {"x": 1.5, "y": [b"z"]}
    assert callable(second.function)


def test_an_aggregation_inside_another_is_saved_with_it():
    def make():
        return DifferentialPrivacyServerSideFixedClipping(FedAdam(), 0.1, 1.0, 2)

    first, second = make(), make()
    first.strategy.m_t = {"w": np.ones(3)}
    tensors, values = capture(first)
    bring_back(second, tensors, through_json(values))
    assert np.array_equal(second.strategy.m_t["w"], np.ones(3))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (threading.Lock(), "odd, a lock"),
        ({"x": [object()]}, "odd.x.0, a object"),
        ({(1, 2): 3}, r"odd, with \(1, 2\) for a key"),
        (np.array([object()]), "odd, of object"),
        (torch.nn.Linear(1, 1), "odd, a Linear"),
        ({1, 2}, "odd, a set"),
        (torch.zeros(1, dtype=torch.complex128), "odd, of torch.complex128"),
    ],
)
def test_what_cannot_be_saved_is_named(value, named):
    aggregation = FedAvg()
    aggregation.odd = value
    with pytest.raises(UnsavableError, match=named):
        capture(aggregation)
