"""The process executor ends with the weights of the serial one, bit for bit, whatever happens."""

import gc
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from executors import LARGE, SETTINGS, Remembering, outcome
from federation import CLASSES, PlainSgd, make_scenario, tiny_model
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlearn import records
from fedlearn.client import Client
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from fedlearn.evaluation import Evaluator
from fedlearn.local_work import LocalWork
from fedlearn.run import make_parts
from fedlearn.runtimes.inprocess import InProcess, InProcessGrid, num_cores
from fedlearn.runtimes.process import Process, TurnTaker
from fedlearn.runtimes.serial import Serial
from fedlearn.runtimes.task import task_identity
from fedlearn.runtimes.workers import Workers
from fedlearn.schedule import Schedule
from fedlearn.server import make_server_app


def in_processes(app, num_clients, count=2, cost=None, **given):
    """The executor, with workers of its own."""
    return Process(app, num_clients, Workers(TurnTaker(app), count, **given), cost)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_result_is_that_of_the_serial_executor(name, count):
    settings = SETTINGS[name]
    assert outcome(partial(in_processes, count=count), **settings) == outcome(**settings)


def test_so_it_is_with_states_in_files(tmp_path):
    settings = SETTINGS["stateful"]
    in_files = partial(in_processes, parcel_dir=tmp_path)
    assert outcome(in_files, **settings) == outcome(**settings)


def test_so_it_is_in_spawned_workers():
    settings = SETTINGS["stateful"]
    assert outcome(partial(in_processes, start="spawn"), **settings) == outcome(**settings)


def test_so_it_is_when_the_longest_turns_come_first():
    settings = SETTINGS["stateful"]
    by_cost = partial(in_processes, cost=lambda client_id: client_id)
    assert outcome(by_cost, **settings) == outcome(**settings)


def test_so_it_is_when_workers_are_killed_on_the_way(tmp_path):
    def die_once(message, reply, context):
        flag = tmp_path / str(context.node_config["partition-id"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    settings = SETTINGS["stateful"]
    pools = []

    def make(app, num_clients):
        pools.append(in_processes(app, num_clients))
        return pools[0]

    killed = outcome(make, **settings, faults={1: die_once, 3: die_once})
    assert pools[0].workers.crashes == 2
    assert killed == outcome(**settings)


def test_a_client_that_raises_or_kills_its_worker_costs_its_own_turn(caplog):
    def fail(message, reply, context):
        raise ValueError("no luck")

    def die(message, reply, context):
        os.kill(os.getpid(), signal.SIGKILL)

    settings = {"continual": Remembering(), "rounds_per_experience": 2}
    serial = outcome(**settings, faults={1: fail})
    assert "ValueError: no luck" in caplog.text
    caplog.clear()
    assert outcome(in_processes, **settings, faults={1: fail}) == serial
    assert "ValueError: no luck" in caplog.text
    digest, states, events = outcome(in_processes, **settings, faults={1: die})
    assert digest == serial[0]
    assert states[2][0] == {}  # its state stays as it was
    failed = [event["failed"] for event in events if event["event"] == "round"]
    reason = "the worker was ended by SIGKILL"
    assert all(each[0]["client"] == 1 and reason in each[0]["reason"] for each in failed)


TINY = (
    "num_clients=3",
    "scenario=split_digits",
    "scenario.num_experiences=2",
    "rounds_per_experience=2",
    "local.epochs=1",
    "local.batch_size=64",
    "model.hidden_sizes=[16]",
    "tracker=none",
)


class Silent:
    """A tracker that keeps nothing."""

    def event(self, event):
        pass


@pytest.mark.parametrize(
    ("engine", "continual"),
    [
        ("functional", "naive"),
        ("functional", "ewc_online"),
        ("functional", "replay"),
        ("avalanche", "replay"),
    ],
)
def test_configured_runs_agree(engine, continual):
    digests = []
    for runtime in ((), ("runtime.executor=process", "runtime.workers=2")):
        overrides = [*TINY, f"engine={engine}", f"continual={continual}", *runtime]
        experiment = build(prepare(compose(overrides)))
        server, client = make_parts(experiment, Silent())
        with experiment.runtime.open(client) as grid:
            experiment.runtime.run(make_server_app(server), grid)
        assert isinstance(grid.executor, Process if runtime else Serial)
        assert server.rounds == 4
        digests.append(server.digest)
    assert digests[0] == digests[1]


def counting_app():
    """Counts each client's turns in its state, and tells where they were taken."""
    app = ClientApp()

    def turn(message, context):
        kept = context.state.config_records.get("kept", ConfigRecord({"turns": 0}))
        turns = int(kept["turns"]) + 1
        if message.metadata.message_type == "train":
            context.state["kept"] = ConfigRecord({"turns": turns})
            if "large" not in context.state:
                context.state["large"] = records.to_arrays({"w": torch.ones(LARGE)})
        told = {"turns": turns, "process": os.getpid(), "node": context.node_id}
        return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)

    app.train()(turn)
    app.evaluate()(turn)
    app.query()(turn)
    return app


@pytest.fixture
def grid():
    executor = in_processes(counting_app(), 5)
    with task_identity():
        yield InProcessGrid(executor)
    executor.close()


def ask(grid, kind, nodes):
    messages = [Message(RecordDict(), node, kind) for node in nodes]
    replies = grid.send_and_receive(messages)
    pairs = zip(messages, replies, strict=True)
    assert all(a.metadata.message_id == b.metadata.reply_to_message_id for a, b in pairs)
    assert [reply.metadata.src_node_id for reply in replies] == list(nodes)
    return [dict(records.metrics_of(reply)) for reply in replies]


def test_who_clients_are_is_asked_here_and_what_they_learn_there(grid):
    assert {told["process"] for told in ask(grid, "query", range(1, 6))} == {os.getpid()}
    assert not grid.executor.workers.kept_bytes
    assert os.getpid() not in {told["process"] for told in ask(grid, "train", range(1, 6))}


def test_a_clients_messages_are_executed_one_after_another(grid):
    told = ask(grid, "train", [2, 3, 2, 2, 3, 1])
    assert [each["turns"] for each in told] == [1, 1, 2, 3, 2, 1]


def test_the_main_process_holds_one_parcel_a_client_and_the_workers_no_more(grid):
    for _ in range(20):
        ask(grid, "train", range(1, 6))
    gc.collect()
    states = grid.executor._states
    assert sorted(states) == [1, 2, 3, 4, 5]
    # what has not changed since the first turn is where it was
    assert grid.executor.workers.kept_bytes == sum(p.extents[0].size for p in states.values())
    before = dict(states)
    ask(grid, "evaluate", range(1, 6))
    assert all(states[node] is before[node] for node in before)  # nothing changed: nothing is sent
    assert grid.context(3).state["kept"]["turns"] == 20


def test_a_context_is_a_copy(grid):
    ask(grid, "train", [1])
    grid.context(1).state["kept"]["turns"] = 100
    assert ask(grid, "train", [1])[0]["turns"] == 2
    assert dict(grid.context(4).state) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"executor": "x"}, r"runtime.executor=x: unknown; choices: serial, process, "),
        ({"executor": "process", "workers": 0}, r"runtime.workers=0: must be at least 1, or null"),
        ({"workers": 2}, r"runtime.workers=2: is for worker processes"),
        ({"state_dir": "x"}, r"runtime.state_dir=x: is for worker processes"),
        ({"start": "spawn"}, r"runtime.start=spawn: is for worker processes"),
        ({"executor": "process", "start": "x"}, r"runtime.start=x: unknown; choices: fork, spawn"),
        (
            {"executor": "process", "start": "fork", "threads": 2},
            r"runtime.start=fork: is for",
        ),
        ({"threads": 0}, r"runtime.threads=0: must be at least 1"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        InProcess(**arguments)


@pytest.mark.parametrize(
    ("workers", "threads", "clients"), [(None, 1, 9), (None, 64, 9), (3, 1, 2)]
)
def test_there_are_as_many_workers_as_cores_and_clients_have_use_for(workers, threads, clients):
    runtime = InProcess("process", workers=workers, threads=threads)
    scenario = make_scenario(clients)
    schedule, evaluator = Schedule.in_step(clients, 2, 1), Evaluator(CLASSES, None)
    client = Client(scenario, schedule, PlainSgd(), tiny_model, evaluator, LocalWork(0, 1, 4))
    with runtime.open(client) as grid:
        expected = workers or max(1, num_cores() // threads)
        assert grid.executor.workers.count == min(expected, clients)


def test_no_file_has_a_name_where_states_are_kept(tmp_path: Path):
    executor = in_processes(counting_app(), 2, 1, parcel_dir=tmp_path / "states")
    with task_identity():
        ask(InProcessGrid(executor), "train", [1, 2])
    assert not list((tmp_path / "states").iterdir())
    executor.close()
    assert executor.context(2).state["kept"]["turns"] == 1
