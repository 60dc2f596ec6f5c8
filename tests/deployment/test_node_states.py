"""A node's states on its disk: all of one turn or all of the one before, and never less."""

import math
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from flwr.app import RecordDict

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.deployment import states
from fedlearn.deployment.states import KEPT_RUNS, StateError, StateFiles
from fedlearn.types import State

VALUES = {
    "i": -3,
    "f": 0.1,
    "huge": 1e300,
    "inf": math.inf,
    "b": True,
    "s": 'ä\n"\\',
    "y": b"\0\xff\n",
    "ints": [1, 2],
    "floats": [0.5, -math.inf],
    "strings": ["a", "b\n"],
    "flags": [True, False],
    "bytes": [b"", b"\n\0"],
    "none": [],
}
TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3).mT,
    "half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4, dtype=torch.float64),
}


def everything(content):
    """All that a state holds, exactly: values with their types."""
    return {
        key: {name: repr(value) for name, value in record.items()}
        if key not in content.array_records
        else {
            name: (each.dtype, each.tolist()) for name, each in records.to_tensors(record).items()
        }
        for key, record in content.items()
    }


def turn(content, server_round, scale=1.0, used=True):
    kept = ClientState(content)
    kept.settle(server_round - 1 if used else 0)
    tensors = {**TENSORS, "w": scale * TENSORS["w"]}
    kept.stage(State(tensors, {**VALUES, "round": server_round}), server_round, 2)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "states"


def test_what_a_turn_leaves_behind_is_there_for_another_process(folder):
    files = StateFiles(folder)
    for server_round in (1, 2, 3):
        turn(files.state("run-1"), server_round)
        files.save("run-1")
        again = StateFiles(folder).state("run-1")
        assert everything(again) == everything(files.state("run-1"))
        assert ("committed.values" in again) == (server_round > 1)
    kept = ClientState(again)
    kept.settle(3)
    state, experience = kept.committed()
    assert state.values == {**VALUES, "round": 3}
    assert experience == 2
    for name, tensor in TENSORS.items():
        assert state.tensors[name].dtype == tensor.dtype
        assert torch.equal(state.tensors[name], tensor)


def test_a_turn_whose_reply_was_lost_is_dropped_after_a_restart_too(folder):
    files = StateFiles(folder)
    for server_round in (1, 2):
        turn(files.state("run"), server_round)
        files.save("run")
    kept = ClientState(StateFiles(folder).state("run"))
    kept.settle(1)
    assert kept.committed()[0].values["round"] == 1


def test_there_is_no_state_before_a_turn_and_none_without_tensors(folder):
    files = StateFiles(folder)
    assert everything(files.state("run")) == {}
    assert not folder.exists()
    files.save("run")
    assert everything(StateFiles(folder).state("run")) == {}
    ClientState(files.state("run")).stage(State({}, {}), 1, 0)
    files.save("run")
    assert everything(StateFiles(folder).state("run")) == everything(files.state("run"))


def test_forgetting_returns_to_what_is_on_disk(folder):
    files = StateFiles(folder)
    turn(files.state("run"), 1)
    files.save("run")
    before = everything(files.state("run"))
    turn(files.state("run"), 2)
    assert everything(files.state("run")) != before
    files.forget()
    assert everything(files.state("run")) == before
    new = files.state("new")
    turn(new, 1)
    files.forget()
    assert everything(files.state("new")) == {}


def test_runs_do_not_see_each_other(folder):
    files = StateFiles(folder)
    turn(files.state("one"), 1, 1.0)
    files.save("one")
    assert everything(files.state("two")) == {}
    turn(files.state("two"), 1, 2.0)
    files.save("two")
    one = records.to_tensors(files.state("one")["staged.tensors"])
    two = records.to_tensors(files.state("two")["staged.tensors"])
    assert torch.equal(2 * one["w"], two["w"])


# --- damage -------------------------------------------------------------------------------------


def saved(folder):
    files = StateFiles(folder)
    turn(files.state("run"), 1)
    files.save("run")
    return folder / "run" / states.STATE


def test_a_flipped_bit_is_an_error_wherever_it_is(folder):
    path = saved(folder)
    content = path.read_bytes()
    draw = random.Random(0)
    for at in {*range(0, len(content), 7), *range(70), len(content) - 1}:
        damaged = bytearray(content)
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(StateError, match="this client's state is damaged"):
            StateFiles(folder).state("run")
    path.write_bytes(content)
    assert everything(StateFiles(folder).state("run"))


def test_a_file_that_is_cut_off_or_goes_on_is_an_error(folder):
    path = saved(folder)
    content = path.read_bytes()
    for length in {0, 1, 64, 65, *range(0, len(content), 11)}:
        path.write_bytes(content[:length])
        with pytest.raises(StateError, match="damaged"):
            StateFiles(folder).state("run")
    for more in (b"\0", b"\n", content):
        path.write_bytes(content + more)
        with pytest.raises(StateError, match="damaged"):
            StateFiles(folder).state("run")


def test_a_damaged_state_is_not_replaced_by_an_empty_one(folder):
    path = saved(folder)
    path.write_bytes(b"damaged")
    files = StateFiles(folder)
    for _ in range(2):
        with pytest.raises(StateError):
            files.state("run")
        with pytest.raises(StateError):
            files.save("run")
    assert path.read_bytes() == b"damaged"


def test_what_cannot_be_written_leaves_what_was_there(folder, monkeypatch):
    path = saved(folder)
    before = path.read_bytes()
    files = StateFiles(folder)
    turn(files.state("run"), 2)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.save("run")
    assert path.read_bytes() == before
    monkeypatch.undo()
    files.save("run")
    assert everything(StateFiles(folder).state("run")) == everything(files.state("run"))


SAVING = """
import os, sys
from pathlib import Path
import torch
from fedlearn.client_state import ClientState
from fedlearn.deployment.states import StateFiles
from fedlearn.types import State

def tell(what, number):  # at once, or not at all
    os.write(1, f"{what} {number} {os.getpid()}\\n".encode())

def save_for_ever(folder):
    files = StateFiles(Path(folder))
    number = 0
    while True:
        number += 1
        kept = ClientState(files.state("run"))
        kept.settle(number - 1)
        kept.stage(State({"w": torch.full((100_000,), float(number))}, {"n": number}), number, 0)
        tell("begins", number)
        files.save("run")
        tell("ends", number)

for line in sys.stdin:  # forked, because importing torch takes seconds
    child = os.fork()
    if not child:
        save_for_ever(line.strip())
    os.waitpid(child, 0)
    tell("dead", 0)
"""


def test_a_process_killed_while_it_saves_leaves_the_old_state_or_the_new_one(folder):
    draw = random.Random(0)
    half_written = 0
    with subprocess.Popen(
        [sys.executable, "-c", SAVING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as process:
        for number in range(20):
            own = folder / str(number)
            process.stdin.write(f"{own}\n")
            process.stdin.flush()
            last = {"begins": 0, "ends": 0}
            while last["ends"] < 3:
                what, at, child = process.stdout.readline().split()
                last[what] = int(at)
            time.sleep(0.02 * draw.random())
            os.kill(int(child), signal.SIGKILL)
            while "dead" not in last:
                what, at, _ = process.stdout.readline().split()
                last[what] = int(at)

            content = StateFiles(own).state("run")
            left = content["staged.values"]["n"]
            assert left in (last["ends"], last["begins"])
            staged = records.to_tensors(content["staged.tensors"])["w"]
            committed = records.to_tensors(content["committed.tensors"])["w"]
            assert staged.unique().tolist() == [left]
            assert committed.unique().tolist() == [left - 1]
            half_written += (own / "run" / "state.draft").exists()
            files = StateFiles(own)  # and it goes on from there
            turn(files.state("run"), left + 1)
            files.save("run")
            assert everything(StateFiles(own).state("run")) == everything(files.state("run"))
        process.stdin.close()
    assert half_written


# --- files --------------------------------------------------------------------------------------


def test_only_the_latest_runs_stay(folder):
    files = StateFiles(folder)
    names = [f"run-{number}" for number in range(KEPT_RUNS + 3)]
    for number, name in enumerate(names):
        turn(files.state(name), 1)
        files.save(name)
        os.utime(folder / name, (1000 + number,) * 2)
        kept = names[max(0, number + 1 - KEPT_RUNS) : number + 1]
        assert sorted(each.name for each in folder.iterdir()) == sorted(kept)
    assert everything(StateFiles(folder).state(names[0])) == {}


def test_a_run_that_goes_on_is_a_late_one(folder):
    files = StateFiles(folder)
    for name in ("first", *"abcdef"):
        files.state(name)
        files.save(name)
        time.sleep(0.02)
        turn(files.state("first"), 1)
        files.save("first")
        time.sleep(0.02)
    left = {each.name for each in folder.iterdir()}
    assert {"first", "f"} < left
    assert len(left) == KEPT_RUNS


def test_a_new_run_stays_when_the_clock_was_set_back(folder):
    files = StateFiles(folder)
    for name in "abc":
        files.save(name)
        os.utime(folder / name, (2**32, 2**32))
    turn(files.state("new"), 1)
    files.save("new")
    assert everything(StateFiles(folder).state("new")) == everything(files.state("new"))


def test_states_are_their_owners_alone_whatever_the_umask(folder):
    before = os.umask(0)
    try:
        path = saved(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-", "../up", "a/b", "/etc", "a\\b", "a.b", "a\0b", "a\n", " ", "~", "x" * 300],
)
def test_names_that_would_leave_the_folder_are_refused(name, folder):
    (folder / "a").mkdir(parents=True)
    files = StateFiles(folder)
    with pytest.raises(StateError, match="is no name of a run"):
        files.state(name)
    with pytest.raises(StateError, match="is no name of a run"):
        files.save(name)
    assert list(folder.parent.rglob("*")) == [folder, folder / "a"]


def test_a_state_is_a_plain_record_dict(folder):
    assert type(StateFiles(saved(folder).parents[1]).state("run")) is RecordDict
