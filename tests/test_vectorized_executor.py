"""The vectorized executor: whole federations with the serial executor's numbers, up to rounding."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from federation import CLASSES, FEATURES, PlainSgd, federate, make_scenario, norm_model, tiny_model
from flwr.serverapp import strategy as flower
from torch import nn

from fedlearn.client_state import ClientState
from fedlearn.deferred import Deferred
from fedlearn.faults import Faults
from fedlearn.runtimes.cohort_worker import PARTIAL, CohortWorker, _Sums
from fedlearn.runtimes.vectorized import ThisProcess, Vectorized, _portions
from fedlearn.runtimes.workers import Workers
from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import LocalTraining
from strategies.aggregation.fedavg import FedAvg
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


def here(client, formulation="auto"):
    """Make an executor without worker processes."""
    pool = ThisProcess(CohortWorker(client, formulation))
    return Vectorized(client, pool, 1, formulation)


def in_workers(client, number=2, formulation="auto"):
    pool = Workers(CohortWorker(client, formulation), number)
    return Vectorized(client, pool, number, formulation)


def close(one, other, tolerance=1e-5):
    for name, tensor in one.parameters.items():
        error = (tensor - other.parameters[name]).norm() / tensor.norm()
        assert error < tolerance, (name, float(error))


def differing(num_clients=5):
    """Clients of unequal sizes, one of them with nothing in one experience."""
    scenario = make_scenario(num_clients, empty={(1, 1)})
    ends = scenario.shares.ends.clone()
    ends[0, 0] -= 7
    ends[2, 1] -= 11
    shares = type(scenario.shares)(scenario.shares.rows, scenario.shares.begins, ends)
    return type(scenario)(**{**vars(scenario), "shares": shares})


def _told(events):
    """Return what rounds tell, numbers apart from the rest."""
    rounds = [event for event in events if event["event"] == "round"]
    whole = [
        {key: event[key] for key in ("idle", "dropped", "diverged", "failed", "comm")}
        | {"clients": {k: {**each, "loss": 0} for k, each in event["clients"].items()}}
        for event in rounds
    ]
    losses = [each["loss"] for event in rounds for each in event["clients"].values()]
    return whole, losses


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("executor", [here, in_workers])
def test_a_federation_is_the_serial_one_up_to_rounding(name, executor):
    settings = {"fraction_train": 0.6, "rounds_per_experience": 4, "epochs": 2}
    settings |= {"continual": STRATEGIES[name](), "scenario": differing()}
    serial, events, grid = federate(**settings)
    other, others, cohort_grid = federate(**settings, cohort_executor=executor)
    close(serial, other)
    (told, losses), (told_too, losses_too) = _told(events), _told(others)
    assert told == told_too
    assert losses == pytest.approx(losses_too, rel=1e-4, abs=1e-6)
    assert serial.ledger.up_bytes == other.ledger.up_bytes > 0
    assert serial.ledger.down_bytes == other.ledger.down_bytes > 0
    assert serial.ledger.state_bytes == other.ledger.state_bytes
    assert np.allclose(serial.scoreboard.accuracy, other.scoreboard.accuracy, atol=1e-6)
    for client_id, matrix in serial.scoreboard.client_accuracy.items():
        theirs = other.scoreboard.client_accuracy[client_id]
        assert np.allclose(matrix, theirs, equal_nan=True, atol=1e-6)
    for node_id in range(1, 6):
        _same_state(grid.context(node_id).state, cohort_grid.context(node_id).state, name)


def _same_state(one, other, name):
    for record in (one, other):
        if name == "naive" and record:
            assert ClientState(record).committed()[0].tensors == {}
    if name != "naive":
        assert set(one) == set(other)
        (mine, at), (theirs, at_too) = ClientState(one).committed(), ClientState(other).committed()
        assert at == at_too
        assert mine.values == theirs.values
        for key, tensor in mine.tensors.items():
            assert torch.allclose(tensor, theirs.tensors[key], atol=1e-5)


def test_lost_replies_are_in_no_mean_and_roll_states_back():
    settings = {"continual": STRATEGIES["ewc"](), "rounds_per_experience": 4}
    settings |= {"injected": Faults(drop_out=0.4), "scenario": differing()}
    serial, events, _ = federate(**settings)
    other, others, _ = federate(**settings, cohort_executor=here)
    assert any(event.get("dropped") for event in events)
    close(serial, other)
    assert _told(events)[0] == _told(others)[0]


@pytest.mark.parametrize(
    "aggregation",
    [
        flower.FedAvg(**SAMPLING),
        flower.FedProx(proximal_mu=0.3, **SAMPLING),
        flower.FedMedian(**SAMPLING),
        type("Single", (FedAvg,), {"reads_means": False})(**SAMPLING),
    ],
    ids=lambda each: type(each).__name__,
)
def test_stock_aggregations_get_single_replies(aggregation):
    settings = {"continual": STRATEGIES["replay"](), "aggregation": aggregation}
    serial, _, _ = federate(**settings)
    for formulation in ("chain", "deferred"):
        executor = partial(in_workers, formulation=formulation)
        close(serial, federate(**settings, cohort_executor=executor)[0])


def test_the_mean_is_the_same_whether_models_are_handed_over_or_not():
    settings = {"continual": STRATEGIES["naive"](), "cohort_executor": here}
    together, _, _ = federate(**settings, aggregation=FedAvg(**SAMPLING))
    single = type("Single", (FedAvg,), {"reads_means": False})(**SAMPLING)
    one_by_one, _, _ = federate(**settings, aggregation=single)
    close(together, one_by_one, 1e-6)


def test_equal_settings_give_equal_bits():
    settings = {"continual": STRATEGIES["ewc"](), "cohort_executor": in_workers}
    first, second = (federate(differing(), **settings)[0].digest for _ in range(2))
    assert first == second


def test_buffers_are_averaged_where_the_model_has_some():
    settings = {"continual": STRATEGIES["naive"](), "build_model": norm_model}
    serial, _, _ = federate(**settings)
    other, _, _ = federate(**settings, cohort_executor=in_workers)
    close(serial, other)
    for name, buffer in serial.buffers.items():
        assert torch.allclose(buffer.double(), other.buffers[name].double(), rtol=1e-5)
        assert buffer.dtype == other.buffers[name].dtype


@pytest.mark.parametrize("formulation", ["chain", "deferred"])
def test_a_client_that_diverges_costs_nobody_else_anything(formulation):
    limited = LocalTraining(partial(torch.optim.SGD, lr=0.1), CLASSES, max_loss=1.6)
    settings = {"continual": naive(training=limited), "scenario": differing()}
    serial, events, _ = federate(**settings)
    executor = partial(here, formulation=formulation)
    other, others, _ = federate(**settings, cohort_executor=executor)
    assert any(event.get("diverged") for event in events)
    assert any(event.get("clients") for event in events)
    close(serial, other)
    for one, two in zip(events, others, strict=True):
        clients = [[each["client"] for each in e.get("diverged", [])] for e in (one, two)]
        assert clients[0] == clients[1]


@pytest.mark.parametrize("formulation", ["chain", "deferred"])
def test_an_infinite_weight_is_found_behind_a_sum(formulation):
    class Breaks:
        """Trains as usual, and leaves one client's weights infinite."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def train(self, parameters, buffers, turns, states):
            report = self.inner.train(parameters, buffers, turns, states)
            at = np.flatnonzero(turns.client_ids == 2)
            first = next(iter(report.parameters.values()))
            values = first.left if isinstance(first, Deferred) else first
            assert isinstance(first, Deferred) == (formulation == "deferred")
            values[torch.from_numpy(at)] = torch.inf
            return report

    def broken(client):
        executor = here(client, formulation)
        executor._pool._handle._trainer = Breaks(executor.trainer)
        return executor

    server, events, _ = federate(continual=STRATEGIES["naive"](), cohort_executor=broken)
    for event in events:
        if event["event"] == "round":
            told = event["diverged"]
            assert [each["client"] for each in told] == [2]
            assert "holds NaN or infinity" in told[0]["reason"]
            assert set(event["clients"]) == {"0", "1", "3"}
    assert all(torch.isfinite(each).all() for each in server.parameters.values())


def test_a_client_that_raises_costs_its_own_turn():
    class Picky:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def train(self, parameters, buffers, turns, states):
            if 1 in turns.client_ids:
                raise RuntimeError("client 1 is ill")
            return self.inner.train(parameters, buffers, turns, states)

    def picky(client):
        executor = here(client)
        executor._pool._handle._trainer = Picky(executor.trainer)
        return executor

    _, events, _ = federate(continual=STRATEGIES["naive"](), cohort_executor=picky)
    for event in events:
        if event["event"] == "round":
            assert event["failed"] == [{"client": 1, "reason": "RuntimeError: client 1 is ill"}]
            assert set(event["clients"]) == {"0", "2", "3"}


def test_only_functional_strategies_can_be_vectorized():
    with pytest.raises(ValueError, match=r"^runtime\.executor=vectorized: needs engine=functional"):
        federate(continual=PlainSgd(), cohort_executor=here)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("formulation", ["deferred", "chain", "vmap", "loop"])
def test_every_formulation_gives_the_same_federation(formulation, name):
    settings = {"continual": STRATEGIES[name](), "scenario": differing()}
    serial, _, _ = federate(**settings)
    executor = partial(here, formulation=formulation)
    close(serial, federate(**settings, cohort_executor=executor)[0])


def test_a_model_in_float64_agrees_to_rounding():
    def double_model() -> nn.Module:
        with borrowed_global_rng(7):
            layers = nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)
            return nn.Sequential(*layers).double()

    scenario = differing()
    train = type(scenario.train)(scenario.train.x.double(), scenario.train.y)
    test = type(scenario.test)(scenario.test.x.double(), scenario.test.y)
    scenario = type(scenario)(**{**vars(scenario), "train": train, "test": test})
    settings = {"continual": STRATEGIES["ewc"](), "build_model": double_model}
    serial, _, _ = federate(scenario, **settings)
    other, _, _ = federate(scenario, **settings, cohort_executor=here)
    close(serial, other, 1e-12)


@pytest.mark.parametrize(
    ("clients", "chunk", "workers"),
    [(1, 8, 1), (50, 8, 1), (3, 1, 4), (100, 8, 2), (1000, 307, 2), (1000, 307, 16)],
)
def test_jobs_cover_the_clients_and_get_smaller(clients, chunk, workers):
    portions = _portions(clients, chunk, workers)
    assert [begin for begin, _ in portions] == [0, *(end for _, end in portions[:-1])]
    assert portions[-1][1] == clients
    sizes = [end - begin for begin, end in portions]
    assert all(one >= two for one, two in pairwise(sizes))
    assert len(sizes) >= min(clients, workers)
    assert sizes[0] <= max(1, clients // workers)


def test_tiny_models_are_linear_chains():
    seen = []

    def executor(client):
        seen.append(here(client))
        return seen[0]

    federate(continual=STRATEGIES["naive"](), cohort_executor=executor, build_model=tiny_model)
    assert seen[0].trainer.formulation == "deferred"
    assert not seen[0].trainer.keeps_state


def test_sums_of_many_clients_are_as_exact_as_in_float64():
    draws, sums = torch.Generator().manual_seed(0), _Sums()
    models = torch.randn(40, 50, generator=draws)
    for model in models:
        sums.add({"w": model.clone()}, PARTIAL // 3)  # several times more than are added at once
    total = sums.totals()["w"]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), models.double().sum(0), rtol=1e-6, atol=1e-6)
