"""Progressive networks: the papers' equations, and columns of the past that never move."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from cohort import Federation, scores, shared
from lone_client import TASK_TRAINING, live, mlp, model_for, split
from torch import nn

from fedlearn.seeding import borrowed_global_rng
from strategies.continual.avalanche.pnn import pnn

THREE = replace(TASK_TRAINING, heads=((0, 1), (2, 3), (4, 5)))
HEAVY = replace(THREE, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01))


def deep() -> nn.Module:
    with borrowed_global_rng(0):
        layers = [nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 10)]
        return nn.Sequential(nn.Flatten(), *layers)


@pytest.mark.parametrize("adapter", ["mlp", "linear"])
@pytest.mark.parametrize("build", [mlp, deep, partial(mlp, dropout=0.3)])
def test_outputs_of_past_tasks_never_change(build, adapter: str) -> None:
    federation = Federation(pnn(training=HEAVY, adapter=adapter), shared(task=True), build)
    tests, known = split(3, task=True), {}
    for index in range(3):
        for _ in federation.learn(index, 3, [(0, 0)]):
            for task, expected in known.items():
                assert torch.equal(scores(federation.model, tests[task]), expected)
        known[index] = scores(federation.model, tests[index])
    assert all(output.std() > 0 for output in known.values())
    assert all(parameter.requires_grad for parameter in federation.model.parameters())


def test_columns_are_the_papers_equation_with_adapters() -> None:
    network = model_for(pnn(training=THREE), deep).eval()
    x = torch.rand(7, 64)
    with torch.no_grad():
        hidden: list[list[torch.Tensor]] = []  # [column][layer]
        for task in range(3):
            column = network.columns[task]
            hidden.append([column[0].itoh(x).tanh()])
            assert column[0].adapter.num_prev_modules == 0
            for depth in (1, 2):
                layer = column[depth]
                total = layer.itoh(hidden[task][-1])
                if task:
                    adapter = layer.adapter
                    before = [hidden[j][depth - 1] * adapter.alphas[j] for j in range(task)]
                    total = total + adapter.U(adapter.V(torch.cat(before, 1)).relu())
                hidden[task].append(total.tanh() if depth == 1 else total)
            assert torch.allclose(network(x)[:, [2 * task, 2 * task + 1]], hidden[task][2])
        assert (network(x)[:, 6:] == 0).all()


def test_columns_are_the_papers_equation_without_adapters() -> None:
    network = model_for(pnn(training=THREE, adapter="linear")).eval()
    x = torch.rand(7, 64)
    with torch.no_grad():
        hidden = [column[0].itoh(x).relu() for column in network.columns]
        for task, column in enumerate(network.columns):
            lateral = sum(column[1].adapter.lat_layers[j](hidden[j]) for j in range(task))
            expected = column[1].itoh(hidden[task]) + lateral
            assert torch.allclose(network(x)[:, [2 * task, 2 * task + 1]], expected, atol=1e-6)


def test_a_turn_trains_the_present_column_and_no_other() -> None:
    strategy, stream = pnn(training=THREE), split(3, task=True)
    network = model_for(strategy)
    for task, experience in enumerate(stream):
        before = [
            {name: tensor.clone() for name, tensor in column.state_dict().items()}
            for column in network.columns
        ]
        live(strategy, network, [experience])
        for index, column in enumerate(network.columns):
            same = [torch.equal(before[index][name], t) for name, t in column.state_dict().items()]
            assert all(same) is (index != task)
            assert any(same) is (index != task)


def test_later_columns_read_the_fixed_ones_without_dropout() -> None:
    strategy, stream = pnn(training=THREE), split(2, task=True)
    network = model_for(strategy, partial(mlp, dropout=0.5))
    live(strategy, network, stream, rounds=2)
    x, seen = stream[1].gather()[0], []
    handle = network.columns[1][1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    for training in (True, True, False):
        network.train(training)
        network(x)
    handle.remove()
    (before, own), (again, own_again), (evaluated, own_evaluated) = (each[0] for each in seen)
    assert torch.equal(before, again)
    assert torch.equal(before, evaluated)
    assert not torch.equal(own, own_again)
    assert (own == 0).sum() > (own_evaluated == 0).sum()


def test_two_clients_learn_every_task() -> None:
    streams = shared(task=True)
    federation = Federation(pnn(training=THREE), streams, server_momentum=0.0)
    for index in range(3):
        federation.learn_all(index, 5, epochs=2, batch_size=8)
    for index in range(3):
        y = streams[1][index].gather()[1]
        best = scores(federation.model, streams[1][index]).argmax(1) + 2 * index
        assert float((best == y).float().mean()) > 0.95


def test_a_past_task_cannot_be_trained_again() -> None:
    strategy, stream = pnn(training=THREE), split(2, task=True)
    network = model_for(strategy)
    live(strategy, network, stream)
    with pytest.raises(ValueError, match=r"^continual=pnn: cannot train task 0 again"):
        live(strategy, network, stream[:1])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.act, self.two = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(x + self.act(self.one(x)))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(64, 10),
        mlp(norm=True),
        Residual(),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
        nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 7)),
        nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 10)),
    ],
)
def test_other_models_are_refused_in_one_line(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^continual=pnn: needs a multi-layer perceptron[^\n]*$"):
        pnn(training=THREE).equip(model)


def test_scenarios_that_do_not_fit_are_refused() -> None:
    for heads in (None, ((0, 1), (1, 2))):
        with pytest.raises(ValueError, match=r"^continual=pnn: needs [^\n]*$"):
            pnn(training=replace(THREE, heads=heads)).equip(mlp())
    with pytest.raises(ValueError, match=r"^continual.adapter=conv: must be one of mlp, linear$"):
        pnn(training=THREE, adapter="conv")
