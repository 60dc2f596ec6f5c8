import numpy as np
import pytest
import torch
from federation import federate, make_scenario, norm_model
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.stacked import weighted_mean
from strategies.aggregation import bounds

SAMPLING = {"min_train_nodes": 1, "min_available_nodes": 1, "min_evaluate_nodes": 1}
STOCK = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5},
    "FedProx": {"proximal_mu": 0.1},
    "FedAdam": {"eta": 0.05},
    "FedYogi": {"eta": 0.05},
    "FedAdagrad": {"eta": 0.05},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.1},
}


def _stock(name):
    return getattr(flower, name)(**STOCK[name], **SAMPLING)


@pytest.mark.parametrize("name", STOCK)
def test_stock_flower_aggregations_run_unmodified_and_repeat(name):
    scenario = make_scenario(num_clients=7)
    runs = [
        federate(scenario, _stock(name), build_model=norm_model, fraction_train=1.0)[0]
        for _ in range(2)
    ]
    assert runs[0].digest == runs[1].digest
    assert not [event for event in runs[0].events if event["event"] == "warning"]
    for tensor in runs[0].parameters.values():
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()
    assert runs[0].buffers["1.num_batches_tracked"].dtype == torch.int64


def test_our_fedavg_agrees_with_flowers():
    ours, flowers = federate()[0], federate(aggregation=_stock("FedAvg"))[0]
    for name, tensor in ours.parameters.items():
        assert torch.allclose(tensor, flowers.parameters[name], atol=1e-5)


@given(
    st.lists(st.floats(1, 1e6), min_size=1, max_size=6),
    st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=5),
)
def test_the_mean_of_equals_is_the_identity(weights, values):
    model = {"w": torch.tensor(values)}
    mean = weighted_mean([model] * len(weights), weights)
    np.testing.assert_allclose(mean["w"].numpy(), model["w"].numpy(), rtol=1e-6)


def test_the_mean_is_weighted_and_keeps_the_dtype():
    models = [{"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 6.0])}]
    mean = weighted_mean(models, [1, 3])
    assert mean["w"].tolist() == [3.0, 5.0]
    assert mean["w"].dtype == torch.float32


@pytest.mark.parametrize(
    ("reason", "holds"),
    [
        (bounds.krum(4, num_malicious_nodes=1), False),
        (bounds.krum(5, num_malicious_nodes=1), True),
        (bounds.bulyan(6, num_malicious_nodes=1), False),
        (bounds.bulyan(7, num_malicious_nodes=1), True),
        (bounds.multikrum(5, num_malicious_nodes=1, num_nodes_to_select=5), False),
        (bounds.multikrum(5, num_malicious_nodes=1, num_nodes_to_select=4), True),
        (bounds.trimmed(4, beta=0.2), False),
        (bounds.trimmed(5, beta=0.2), True),
        (bounds.trimmed(9, beta=0.5), False),
        (bounds.krum(9, num_malicious_nodes=-1), False),
    ],
)
def test_bounds_hold_exactly_where_the_papers_say(reason, holds):
    assert (reason is None) == holds
    assert holds or "\n" not in reason


def test_fedprox_tells_its_coefficient_to_every_client():
    seen = []

    class Probe:
        def train_turn(self, model, experience, stream, turn, state):
            from fedlearn.types import Report

            seen.append(turn.config["proximal-mu"])
            return Report(state, 0.0, 0)

    federate(aggregation=_stock("FedProx"), continual=Probe(), rounds_per_experience=1)
    assert seen == [0.1] * 8
