"""Several devices: choosing them, placing clients, and one federation whatever their number.

Logical devices of the CPU (``cpu:0``, ``cpu:1``) stand for GPUs: what moves to one is copied, and
each has its thread, model and samples. What they cannot show, that nothing mixes devices, tensors
without data do (`FakeTensorMode`), which refuse it as CUDA's do.
"""

import signal
import threading
from functools import partial

import numpy as np
import pytest
import torch
from federation import CLASSES, federate, make_scenario, norm_model, tiny_model
from flwr.serverapp import strategy as flower
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fedlearn.augmentation import Augmentation
from fedlearn.cli import main
from fedlearn.client_state import ClientState
from fedlearn.config.experiment import _placed
from fedlearn.evaluation import Evaluator
from fedlearn.faults import Faults
from fedlearn.grids import used_turns
from fedlearn.runtimes.cohort_worker import CohortWorker, _weighted, trainer_of
from fedlearn.runtimes.device_names import resolve
from fedlearn.runtimes.devices import Devices, on_devices, place
from fedlearn.runtimes.inprocess import InProcess
from fedlearn.runtimes.vectorized import ThisProcess
from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, LocalTraining, Samples, Shares
from scenarios.domains import PixelPermutation, Rotation
from strategies.continual.functional.ewc import ewc
from strategies.continual.functional.naive import naive
from strategies.continual.functional.replay import replay

SAMPLING = {"min_train_nodes": 1, "min_available_nodes": 1, "min_evaluate_nodes": 1}
TRAINING = LocalTraining(partial(torch.optim.SGD, lr=0.1), CLASSES)
STRATEGIES = {
    "naive": partial(naive, training=TRAINING),
    "replay": partial(replay, training=TRAINING, memory_per_client=5),
    "ewc": partial(ewc, training=TRAINING, ewc_lambda=1.0),
}
CPU = [torch.device("cpu")]
THREE = [torch.device("cpu", index) for index in range(3)]


def over(devices, formulation="auto", change=None):
    """Return what makes an executor on devices, and lets `change` have it first."""

    def make(client):
        executor = on_devices(client, devices, formulation)
        if change is not None:
            change(executor)
        return executor

    return make


def differing(num_clients=7):
    """Clients of unequal sizes, one of them with nothing in one experience."""
    scenario = make_scenario(num_clients, empty={(1, 1)})
    ends = scenario.shares.ends.clone()
    ends[0, 0] -= 7
    ends[2, 1] -= 11
    ends[5, 0] -= 5
    shares = Shares(scenario.shares.rows, scenario.shares.begins, ends)
    return type(scenario)(**{**vars(scenario), "shares": shares})


def same(one, other):
    """Compare two federations: (server, events, grid)."""
    (server, events, grid), (server_too, events_too, grid_too) = one, other
    for mine, theirs in (
        (server.parameters, server_too.parameters),
        (server.buffers, server_too.buffers),
    ):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.allclose(tensor.double(), theirs[name].double(), rtol=1e-6, atol=1e-6)
    assert len(events) == len(events_too)
    for event, event_too in zip(events, events_too, strict=True):
        for key in ("idle", "dropped", "failed", "comm"):
            assert event.get(key) == event_too.get(key)
        diverged = [[told["client"] for told in e.get("diverged", [])] for e in (event, event_too)]
        assert diverged[0] == diverged[1]
        for client, told in event.get("clients", {}).items():
            assert told == pytest.approx(event_too["clients"][client], rel=1e-4, abs=1e-6)
        assert set(event.get("clients", {})) == set(event_too.get("clients", {}))
    for node_id in grid.get_node_ids():
        states = [each.context(node_id).state for each in (grid, grid_too)]
        assert set(states[0]) == set(states[1])
        if states[0]:
            (mine, at), (theirs, at_too) = (ClientState(each).committed() for each in states)
            assert (at, mine.values) == (at_too, theirs.values)
            assert mine.tensors.keys() == theirs.tensors.keys()
            for name, tensor in mine.tensors.items():
                assert torch.allclose(tensor, theirs.tensors[name], atol=1e-6), name


# --- which devices ------------------------------------------------------------------------------


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("named", "count", "several", "expected"),
    [
        ("auto", 0, True, ["cpu"]),
        ("auto", 2, True, ["cuda:0", "cuda:1"]),
        ("auto", 2, False, ["cuda:0"]),
        ("cpu", 2, True, ["cpu"]),
        ("cuda", 1, False, ["cuda:0"]),
        ("cuda:1, cuda:0", 2, True, ["cuda:1", "cuda:0"]),
        (["cuda:0", "cuda:2"], 3, True, ["cuda:0", "cuda:2"]),
    ],
)
def test_names_become_devices(named, count, several, expected, monkeypatch):
    gpus(monkeypatch, count)
    assert resolve(named, "vectorized", several=several) == list(map(torch.device, expected))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            "runtime.devices=gpu",
            "=gpu: unknown; did you mean cpu? choices: auto, cpu, cuda, cuda:N",
        ),
        ("runtime.devices=[cuda:0,cdua:1]", "=cuda:0,cdua:1: cdua:1 is unknown;"),
        ("runtime.devices=[]", "=[]: must name at least one; choices: auto, cpu, cuda, cuda:N"),
        ("runtime.devices=''", "=[]: must name at least one"),
        ("runtime.devices=null", "=null: must be text or a list"),
        ("runtime.devices=[auto,cpu]", "=auto,cpu: auto stands for all there are"),
        ("runtime.devices=[cuda,cuda:0]", "=cuda,cuda:0: cuda:0 comes twice"),
        ("runtime.devices=[cpu,cpu]", "=cpu,cpu: cpu comes twice"),
        ("runtime.devices=[cpu,cuda:0]", "=cpu,cuda:0: cpu and cuda do not go together"),
        (
            "runtime.devices=cuda:9",
            "=cuda:9: this machine has 2 CUDA devices; choices: auto, cpu, ",
        ),
        (
            "runtime.devices=[cuda:0,cuda:1]",
            "=cuda:0,cuda:1: several devices are for runtime.executor=vectorized, and it is serial",
        ),
        (
            'runtime.executor=process runtime.devices="cuda:0,cuda:1"',
            "several devices are for runtime.executor=vectorized, and it is process; take one",
        ),
        (
            "runtime.devices=cuda:0,cuda:1",
            "=cuda:0,cuda:1: several values need -m (or brackets, to mean one list: "
            "runtime.devices=[cuda:0,cuda:1])",
        ),
        ("device=cpu", "device=cpu: unknown key; did you mean runtime.devices?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides, line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    gpus(monkeypatch, 2)
    assert main(["run", *overrides.split()]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{"workers": 2}, {"start": "spawn"}, {"state_dir": "states"}])
def test_on_gpus_a_cohort_has_no_worker_processes(given, monkeypatch):
    gpus(monkeypatch, 2)
    (key,) = given
    with pytest.raises(ValueError, match=rf"^runtime\.{key}=.*vectorized has none on cuda:0; rem"):
        InProcess("vectorized", **given)
    assert InProcess("vectorized", "cpu", **given).devices == CPU
    assert InProcess("vectorized").devices == [torch.device("cuda", 0), torch.device("cuda", 1)]


def test_the_doctor_tells_the_devices(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "runtime.devices=cpu"]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if " devices  " in each]
    assert line.split() == ["devices", "cpu"]
    assert main(["doctor", "runtime.devices=cuda:77"]) == 1
    assert "broken runtime.devices=cuda:77: this machine has" in capsys.readouterr().out


def test_with_several_devices_training_samples_stay_where_they_were_read():
    scenario = make_scenario()
    assert _placed(scenario, THREE).train is scenario.train
    assert _placed(scenario, THREE).test.x is not scenario.test.x
    assert _placed(scenario, CPU).train is scenario.train


# --- who is where -------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "count"), [(1, 3), (10, 3), (500, 4), (64, 1)])
def test_clients_are_placed_by_load(clients, count):
    loads = np.random.default_rng(clients).integers(0, 50, clients)
    placement = place(loads, count)
    assert placement.shape == (clients,)
    assert np.array_equal(placement, place(loads.copy(), count))
    totals = [0] * count
    for load, client_id in sorted(zip(-loads, range(clients), strict=True)):
        device = totals.index(min(totals))
        assert placement[client_id] == device
        totals[device] -= load
    assert max(totals) - min(totals) <= loads.max()


def pictures():
    """A scenario of uint8 images; clients 0 and 3 share samples, client 0's experiences all."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, 256, (40, 2, 3, 3), generator=generator, dtype=torch.uint8)
    train = Samples(x, torch.arange(40) % CLASSES, (0.1, 0.3), (0.5, 0.7))
    blobs = make_scenario(4)
    rows = torch.randperm(40, generator=generator)
    begins = torch.tensor([[0, 0], [10, 15], [18, 18], [3, 30]], dtype=torch.int32)
    ends = torch.tensor([[10, 10], [15, 18], [30, 18], [12, 40]], dtype=torch.int32)
    return type(blobs)(
        **{
            **vars(blobs),
            "train": train,
            "test": train,
            "shares": Shares(rows, begins, ends),
            "topics": tuple(
                type(topic)(topic.classes, topic.test_rows, Rotation(30.0))
                for topic in blobs.topics
            ),
            "views": (None, PixelPermutation(tuple(range(17, -1, -1))), None, None),
        }
    )


@pytest.mark.parametrize("clients", [[0], [1, 2], [2, 3], [0, 1, 2, 3], []])
def test_a_part_gives_its_clients_what_the_whole_does(clients):
    whole = pictures()
    part = whole.part(torch.tensor(clients, dtype=torch.int64), "cpu")
    experiences = [each for client in clients for each in whole.stream(client)]
    rows = {row for each in experiences for row in each.rows.tolist()}
    assert len(part.train) == len(rows)
    assert part.train.x.dtype == torch.uint8
    assert part.input_shape == whole.input_shape
    for client in clients:
        for mine, theirs in zip(part.stream(client), whole.stream(client), strict=True):
            assert torch.equal(mine.rows, theirs.rows)
            for tensor, other in zip(mine.gather(), theirs.gather(), strict=True):
                assert torch.equal(tensor, other)
        for index in range(part.num_experiences):
            assert not len(part.held_out_experience(client, index))
    absent = sorted(set(range(40)) - rows)
    if absent and rows:
        with pytest.raises(IndexError):
            part.train.inputs(torch.tensor(absent[:1]))
        with pytest.raises(IndexError):
            part.train.targets(torch.tensor(absent[:1]))


def test_each_device_holds_its_own_clients_samples_only():
    scenario, seen = differing(), []
    federate(
        scenario,
        continual=STRATEGIES["naive"](),
        cohort_executor=over(THREE, change=seen.append),
    )
    placement = seen[0]._placement
    sizes = scenario.shares.sizes().sum(1).numpy()
    for at, handle in enumerate(seen[0]._pool._handles):
        assert len(handle._client.scenario.train) == sizes[placement == at].sum() > 0
    assert len({id(handle._client.model) for handle in seen[0]._pool._handles}) == 3


def test_one_device_takes_no_thread_and_no_copy():
    seen = []
    threads = threading.active_count()

    def make(client):
        executor = on_devices(client, CPU, "auto")
        seen.append((executor, client, threading.active_count()))
        return executor

    federate(continual=STRATEGIES["naive"](), cohort_executor=make)
    executor, client, during = seen[0]
    assert during == threads
    assert isinstance(executor._pool, ThisProcess)
    assert executor._pool._handle._client is client


# --- one federation, whatever the devices -------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_three_devices_give_the_federation_of_one(name):
    settings = {"fraction_train": 0.6, "rounds_per_experience": 4, "epochs": 2}
    settings |= {"continual": STRATEGIES[name](), "scenario": differing()}
    one = federate(**settings, cohort_executor=over(CPU))
    several = federate(**settings, cohort_executor=over(THREE))
    same(one, several)
    again = federate(**settings, cohort_executor=over(THREE))
    assert several[0].digest == again[0].digest


@pytest.mark.parametrize("formulation", ["chain", "vmap", "loop"])
def test_every_formulation_does(formulation):
    settings = {"continual": STRATEGIES["ewc"](), "scenario": differing()}
    same(*(federate(**settings, cohort_executor=over(each, formulation)) for each in (CPU, THREE)))


@pytest.mark.parametrize(
    "aggregation", [flower.FedMedian(**SAMPLING), flower.FedProx(proximal_mu=0.3, **SAMPLING)]
)
def test_single_models_come_back_in_the_order_of_clients(aggregation):
    settings = {"continual": STRATEGIES["replay"](), "aggregation": aggregation}
    settings |= {"scenario": differing()}
    same(*(federate(**settings, cohort_executor=over(each)) for each in (CPU, THREE)))


def dropout_model():
    model = tiny_model()
    model.insert(2, torch.nn.Dropout(0.5))
    return model


@pytest.mark.parametrize("build_model", [norm_model, dropout_model])
def test_models_with_buffers_and_with_draws_of_their_own(build_model):
    settings = {"continual": STRATEGIES["naive"](), "build_model": build_model}
    settings |= {"scenario": differing()}
    same(*(federate(**settings, cohort_executor=over(each)) for each in (CPU, THREE)))


def test_lost_replies_and_clients_that_diverge():
    limited = LocalTraining(partial(torch.optim.SGD, lr=0.1), CLASSES, max_loss=1.6)
    settings = {"continual": ewc(training=limited, ewc_lambda=1.0), "scenario": differing()}
    settings |= {"injected": Faults(drop_out=0.3), "rounds_per_experience": 3}
    one, several = (federate(**settings, cohort_executor=over(each)) for each in (CPU, THREE))
    assert any(event.get("diverged") for event in several[1])
    assert any(event.get("dropped") for event in several[1])
    same(one, several)


def test_uint8_samples_stay_uint8_and_train_as_their_numbers():
    blobs = differing()
    x = torch.randint(0, 256, blobs.train.x.shape, generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    small = type(blobs)(**{**vars(blobs), "train": Samples(x, blobs.train.y)})
    read = small.train.inputs(torch.arange(len(x)))
    assert read.dtype == torch.float32
    large = type(blobs)(**{**vars(blobs), "train": Samples(read, blobs.train.y)})
    seen = []
    settings = {"continual": STRATEGIES["replay"]()}
    several = federate(small, **settings, cohort_executor=over(THREE, change=seen.append))
    same(federate(large, **settings, cohort_executor=over(CPU)), several)
    for handle in seen[0]._pool._handles:
        assert handle._client.scenario.train.x.dtype == torch.uint8


def test_the_runtime_opens_and_closes_devices():
    seen = []
    runtime = InProcess("vectorized")
    runtime.devices, runtime._on_cuda = THREE, True

    def make(client):
        seen.append(runtime._make_executor(client))
        return seen[0]

    federate(continual=STRATEGIES["naive"](), cohort_executor=make)
    assert isinstance(seen[0]._pool, Devices)
    assert seen[0].description["workers"] == 3


# --- what goes wrong ----------------------------------------------------------------------------


class Wrapped:
    """A trainer that does something else besides."""

    def __init__(self, inner, before=None, after=None):
        self.inner, self.before, self.after = inner, before, after

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def train(self, parameters, buffers, turns, states):
        if self.before is not None:
            self.before(turns)
        report = self.inner.train(parameters, buffers, turns, states)
        if self.after is not None:
            self.after(turns, report)
        return report


def wrapping(chunk=None, **hooks):
    """Return a change of an executor: what every device's trainer does besides."""

    def change(executor):
        for handle in executor._pool._handles:
            inner = trainer_of(handle._client.continual, handle._client.model, "auto")
            handle._trainer = Wrapped(inner, **hooks)
            if chunk is not None:
                handle._trainer.chunk = chunk

    return change


def test_a_client_that_raises_costs_its_own_turn():
    def ill(turns):
        if 1 in turns.client_ids:
            raise RuntimeError("client 1 is ill")

    settings = {"continual": STRATEGIES["naive"](), "scenario": make_scenario(6)}
    _, events, _ = federate(**settings, cohort_executor=over(THREE, change=wrapping(before=ill)))
    for event in events:
        if event["event"] == "round":
            assert event["failed"] == [{"client": 1, "reason": "RuntimeError: client 1 is ill"}]
            assert set(event["clients"]) == {"0", "2", "3", "4", "5"}


def test_infinite_weights_are_found_on_every_device():
    def broken(turns, report):
        at = np.flatnonzero(np.isin(turns.client_ids, (2, 3)))
        next(iter(report.parameters.values()))[torch.from_numpy(at)] = torch.inf

    settings = {"continual": STRATEGIES["naive"](), "scenario": make_scenario(6)}
    make = over(THREE, change=wrapping(after=broken))
    server, events, _ = federate(**settings, cohort_executor=make)
    for event in events:
        if event["event"] == "round":
            assert [each["client"] for each in event["diverged"]] == [2, 3]
    assert all(torch.isfinite(each).all() for each in server.parameters.values())


@pytest.mark.parametrize("devices", [CPU, THREE])
def test_a_job_that_raises_costs_its_clients_turns(devices, monkeypatch):
    do = CohortWorker._do

    def fails(self, job, *others):
        if 1 in job.columns["client_ids"]:
            raise MemoryError("no room")
        return do(self, job, *others)

    monkeypatch.setattr(CohortWorker, "_do", fails)
    settings = {"continual": STRATEGIES["naive"](), "scenario": make_scenario(6)}
    seen = []
    make = over(devices, change=seen.append)
    _, events, _ = federate(**settings, cohort_executor=make, max_failed_rounds=99)
    ill = set(range(6))
    if len(devices) > 1:
        placement = seen[0]._placement
        ill = set(np.flatnonzero(placement == placement[1]).tolist())
    for event in events:
        if event["event"] == "round":
            assert {each["client"] for each in event["failed"]} == ill
            assert {each["reason"] for each in event["failed"]} == {"MemoryError: no room"}


def test_ctrl_c_ends_the_threads_before_their_next_clients():
    before = set(threading.enumerate())
    trained, executors, all_there = [], [], threading.Barrier(3)

    def interrupt(turns):
        trained.append(turns.client_ids.tolist())
        if all_there.wait(20) == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert executors[0]._pool._stopping.wait(20)

    def change(executor):
        executors.append(executor)
        wrapping(chunk=1, before=interrupt)(executor)

    settings = {"continual": STRATEGIES["naive"](), "scenario": make_scenario(9)}
    # A shell's background jobs inherit that Ctrl-C is ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            federate(**settings, cohort_executor=over(THREE, change=change))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(trained) == 3  # of nine clients, the one that each device was at
    assert set(threading.enumerate()) == before
    with pytest.raises(RuntimeError, match="the pool is closed"):
        executors[0]._pool.map([], ({}, {}), None)


def test_one_thread_borrows_the_global_generators_at_a_time():
    inside, leave, found = threading.Event(), threading.Event(), []

    def first():
        with borrowed_global_rng(1):
            inside.set()
            leave.wait(20)
            found.append(torch.rand(3))

    def second():
        inside.wait(20)
        with borrowed_global_rng(2):
            found.append(torch.rand(3))

    before = torch.get_rng_state()
    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    inside.wait(20)
    threads[1].join(0.1)
    assert not found  # the second waits
    leave.set()
    for thread in threads:
        thread.join()
    for seed, drawn in enumerate(found, 1):
        assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(before, torch.get_rng_state())


# --- nothing leaves its device ------------------------------------------------------------------


class Returning(TorchDispatchMode):
    """Notes what is copied from a device to the host."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            there, here = args[0].device.type, result.device.type
            if (there, here) == ("cuda", "cpu"):
                self.noted.append(func)
        return result


def fake_part():
    """Return samples without data of a part that lives on the second GPU; inside a fake mode."""
    device = torch.device("cuda", 1)
    return Samples(
        torch.empty(20, 1, 6, 6, dtype=torch.uint8, device=device),
        torch.empty(20, dtype=torch.int64, device=device),
        (0.5,),
        (0.5,),
        torch.empty(50, dtype=torch.int32, device=device),
    )


def test_a_copy_to_the_host_would_be_noted():
    with FakeTensorMode(), Returning() as returning:
        fake_part().inputs(torch.arange(3)).cpu()
    assert len(returning.noted) == 1


def test_samples_are_read_transformed_and_augmented_where_they_are():
    augment = Augmentation(flip=True, crop=1, rotation=10.0)
    with FakeTensorMode(), Returning() as returning:
        samples = fake_part()
        x = samples.inputs(torch.arange(8))
        for transform in (PixelPermutation(tuple(range(36))), Rotation(20.0)):
            x = transform(x)
        x = augment(x, torch.Generator())
        assert (x.device, x.dtype) == (torch.device("cuda", 1), torch.float32)
        assert samples.targets(torch.arange(8)).device == x.device
    assert returning.noted == []


def test_clients_on_a_device_are_summed_there():
    with FakeTensorMode(), Returning() as returning:
        stacks = {"weight": torch.empty(5, 2, 3, device="cuda:1")}
        sums = _weighted(stacks, torch.ones(5, dtype=torch.float64), {3: "diverged"})
        assert sums["weight"].device == torch.device("cuda", 1)
        assert sums["weight"].shape == (2, 3)
    assert returning.noted == []


def test_samples_in_the_host_are_tested_where_the_model_is():
    with FakeTensorMode():
        rows = torch.arange(12)
        samples = Samples(torch.empty(12, 6), torch.empty(12, dtype=torch.int64))
        model = torch.nn.Linear(6, CLASSES, device="cuda:0")
        one = Experience(0, samples, rows, (0, 1))
        correct, loss = Evaluator(CLASSES, None)._of_rows(model, one, rows, lambda task: task())
    assert correct.shape == loss.shape == (12,)


@pytest.mark.parametrize("name", STRATEGIES)
def test_clients_go_on_where_they_were_on_any_number_of_devices(name):
    settings = {"scenario": differing(), "continual": STRATEGIES[name](), "fraction_train": 0.6}
    states = []

    def note(server, grid):
        states.append((server.state(), used_turns(grid, server.state()[1]["acknowledged"])))

    unbroken = federate(**settings, cohort_executor=over(THREE), after_round=note)
    resumed = federate(**settings, cohort_executor=over(THREE), restored=states[1])
    assert resumed[0].digest == unbroken[0].digest
    for devices in (CPU, THREE[:2]):
        server, *_ = federate(**settings, cohort_executor=over(devices), restored=states[1])
        for key, tensor in server.parameters.items():
            assert torch.allclose(tensor, unbroken[0].parameters[key], atol=1e-5)
