"""Clients in Ray actors end with the weights of the serial executor, bit for bit, whatever dies."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from executors import SETTINGS, Remembering, outcome

from fedlearn.cli import main
from fedlearn.runtimes.process import Process, TurnTaker
from fedlearn.runtimes.ray_pool import RayPool
from fedlearn.runtimes.ray_simulation import RaySimulation, connected
from fedlearn.runtimes.ray_worker import Box, BoxKeeper, Packed
from fedlearn.runtimes.workers import Crashed, Raised

CORE = {"num_cpus": 1.0, "num_gpus": 0.0}

pytestmark = pytest.mark.filterwarnings(
    # Ray leaves files and sockets of its own processes to the collector
    "ignore:unclosed:ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)


@pytest.fixture(scope="module")
def cluster():
    with connected("local"):
        yield
    gc.collect()


def handle(job, shared, keeper):
    """Does what the tests ask for."""
    what, *rest = job
    if what == "echo":
        return rest, os.getpid()
    if what == "shared":
        return shared["w"] + rest[0]
    if what == "raise":
        raise ValueError("no luck")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "die once":
        flag = rest[0]
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid()
    if what == "keep":
        return keeper.pack({"w": torch.full((1000,), rest[0])})
    if what == "add":
        (parcel,) = rest
        kept = keeper.open(parcel)
        return keeper.pack({"w": kept["w"] + 1, "before": kept["w"]})
    raise AssertionError(what)


def make_handle():
    return handle


@pytest.fixture
def pool(cluster):
    pool = RayPool(make_handle, CORE, 2)
    yield pool
    pool.close()


def test_results_come_in_the_order_of_the_jobs(pool):
    jobs = [("echo", i, torch.arange(i)) for i in range(20)]
    results = pool.map(jobs, costs=range(20))
    assert [int(rest[0]) for rest, _ in results] == list(range(20))
    assert all(torch.equal(rest[1], torch.arange(i)) for i, (rest, _) in enumerate(results))
    assert {pid for _, pid in results} & {os.getpid()} == set()


def test_what_jobs_share_is_that_of_their_round(pool):
    for value in (1.0, 2.0):
        shared = {"w": torch.full((1000,), value)}
        results = pool.map([("shared", i) for i in range(4)], shared)
        assert [float(each[0]) for each in results] == [value + i for i in range(4)]


def test_a_job_that_raises_or_kills_its_actor_costs_no_other_its_result(pool):
    jobs = [("echo", 0), ("raise",), ("die",), *(("echo", i) for i in range(3, 9))]
    results = pool.map(jobs)
    raised, crashed = results[1:3]
    assert isinstance(raised, Raised)
    assert raised.reason == "ValueError: no luck"
    assert isinstance(crashed, Crashed)
    assert "ActorDiedError" in crashed.reason
    done = [rest[0] for at, each in enumerate(results) if at not in (1, 2) for rest in each[:1]]
    assert done == [0, *range(3, 9)]
    assert pool.crashes == 2
    again = pool.map([("echo", i) for i in range(10)])  # with as many actors as before
    assert [rest[0] for rest, _ in again] == list(range(10))


def test_a_job_whose_actor_is_killed_is_done_by_another(pool, tmp_path):
    jobs = [("die once", tmp_path / name) for name in ("a", "b")]
    results = pool.map(jobs)
    assert all(isinstance(each, int) for each in results)
    assert pool.crashes == 2


def test_what_is_kept_outlives_the_actor_that_kept_it(pool):
    parcels = pool.map([("keep", float(i)) for i in range(3)])
    pool.map([("die",)] * 2)
    parcels = pool.map([("add", parcel) for parcel in parcels])
    kept = [pool.open(parcel) for parcel in parcels]
    assert [(float(each["w"][9]), float(each["before"][9])) for each in kept] == [
        (i + 1.0, float(i)) for i in range(3)
    ]
    for parcel in parcels:
        pool.drop(parcel)
    assert set(pool._boxes) & {parcel.number for parcel in parcels} == set()


def test_a_closed_pool_says_so(cluster):
    pool = RayPool(make_handle, CORE, 1)
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.map([("echo", 1)])


def test_a_state_that_stays_as_it_was_is_the_same_bytes():
    box = Box()
    first = BoxKeeper(box, 1).pack({"w": torch.arange(1000.0), "n": 3})
    keeper = BoxKeeper(box, 2)
    state = keeper.open(first)
    assert keeper.pack(state).blob == first.blob
    changed = BoxKeeper(box, 3)
    state = changed.open(first)
    packed = changed.pack({"w": state["w"] * 2, "n": 3})
    assert packed.blob != first.blob
    assert torch.equal(BoxKeeper(box, 4).open(packed)["w"], 2 * torch.arange(1000.0))


def test_a_packed_object_keeps_every_type_of_tensor():
    tensors = [
        torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(kind)
        for kind in (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8)
    ]
    tensors += [torch.empty(0, 3), torch.tensor(2.5), tensors[0].t(), tensors[0][::2]]
    opened = Packed.of({"tensors": tensors}).open()["tensors"]
    assert all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors, opened, strict=True)
    )


def in_ray(app, num_clients, actors=2):
    """The executor, with actors of its own."""
    pool = RayPool(partial(TurnTaker, app), CORE, actors)
    return Process(app, num_clients, pool, name="ray")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_result_is_that_of_the_serial_executor(cluster, name):
    settings = SETTINGS[name]
    assert outcome(in_ray, **settings) == outcome(**settings)


def test_so_it_is_when_actors_are_killed_on_the_way(cluster, tmp_path):
    def die_once(message, reply, context):
        flag = tmp_path / str(context.node_config["partition-id"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    settings = SETTINGS["stateful"]
    pools = []

    def make(app, num_clients):
        pools.append(in_ray(app, num_clients))
        return pools[0]

    killed = outcome(make, **settings, faults={1: die_once, 3: die_once})
    assert pools[0].workers.crashes == 2
    assert killed == outcome(**settings)


def test_a_client_that_raises_costs_its_own_turn(cluster, caplog):
    def fail(message, reply, context):
        raise ValueError("no luck")

    settings = {"continual": Remembering(), "rounds_per_experience": 2}
    serial = outcome(**settings, faults={1: fail})
    assert outcome(in_ray, **settings, faults={1: fail}) == serial
    assert "ValueError: no luck" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"address": ""}, "runtime.address=: must be local, auto or HOST:PORT"),
        ({"address": "head"}, "runtime.address=head: must be local, auto or HOST:PORT"),
        ({"num_cpus": 0}, "runtime.num_cpus=0: must be greater than 0"),
        ({"num_cpus": 1e4}, "runtime.num_cpus=10000.0: this machine has "),
        ({"num_gpus": -1}, "runtime.num_gpus=-1: must be at least 0"),
        ({"num_gpus": 1.5}, "runtime.num_gpus=1.5: must be whole where it is above 1"),
        ({"num_gpus": 64}, "runtime.num_gpus=64: this machine has "),
        ({"threads": 0}, "runtime.threads=0: must be at least 1"),
        ({"workers": 0}, "runtime.workers=0: must be at least 1, or null"),
    ],
)
def test_a_value_out_of_range_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RaySimulation(**given)


def test_a_cluster_where_nobody_answers_is_refused_before_anything_starts(capsys, tmp_path):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["tracker=none", "runtime=ray", f"runtime.address={where}", f"out={tmp_path}"]
        assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err == (
        f"runtime.address={where}: there is no Ray cluster; start one (ray start --head), "
        "or take local\n"
    )
    assert not any(tmp_path.iterdir())


def test_the_command_line_has_it_and_ctrl_c_leaves_nothing_behind(tmp_path):
    arguments = ["tracker=none", "scenario=split_digits", "runtime=ray", f"out={tmp_path}"]
    command = [sys.executable, "-m", "fedlearn", "run", *arguments, "rounds_per_experience=5000"]
    script = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    lines = []
    while not (lines and lines[-1].startswith("round ")):
        lines.append(run.stdout.readline())
        assert lines[-1], "".join(lines)
    started = descendants(run.pid)
    assert len(started) > 3
    os.killpg(run.pid, signal.SIGINT)
    rest, _ = run.communicate(timeout=60)
    assert run.returncode == 130, rest
    assert "Traceback" not in rest
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(map(is_alive, started)):
        time.sleep(0.1)
    assert [pid for pid in started if is_alive(pid)] == []


TWO_MACHINES = """
import json
import torch
from ray.cluster_utils import Cluster
from fedlearn.runtimes.ray_pool import RayPool
from fedlearn.runtimes.ray_simulation import connected

def handle(job, shared, keeper):
    what, value = job
    if what == "keep":
        return keeper.pack({"w": torch.full((value, ), 1.0)})
    if what == "read":
        return float(keeper.open(value)["w"].mean())
    return value

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
with connected(cluster.address):
    pool = RayPool(lambda: handle, {"num_cpus": 1.0, "num_gpus": 0.0}, 9)
    small, large = (pool.map([("keep", size)] * 8) for size in (1000, 100_000))
    cluster.remove_node(other)
    read = pool.map([("read", each) for each in (*small, *large)])
    print("actors", pool.count, "crashes", pool.crashes)
    print("small", {str(each) for each in read[:8]})
    print("large", json.dumps(list({str(getattr(each, "reason", each)) for each in read[8:]})))
    print("echo", pool.map([("echo", i) for i in range(5)]))
    pool.close()
cluster.shutdown()
"""


def test_a_machine_that_goes_takes_no_job_with_it(tmp_path):
    script = tmp_path / "machines.py"
    script.write_text(TWO_MACHINES)
    paths = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = dict(line.partition(" ")[::2] for line in run.stdout.splitlines())
    assert told["actors"] == "2 crashes 1", run.stderr
    assert told["small"] == "{'1.0'}"
    lost = "the machine that held the client's state is gone"
    assert sorted(json.loads(told["large"])) == ["1.0", lost]
    assert told["echo"] == "[0, 1, 2, 3, 4]"
    assert "Unhandled error" not in run.stderr


def descendants(pid):
    """Process ids below one."""
    table = subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    parents = dict(map(int, line.split()) for line in table.splitlines())
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
