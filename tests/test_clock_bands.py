"""What clients gain from each other when their streams differ, as DCFCL reports it, on digits.

DCFCL (EMNIST, 8 clients, 6 experiences of 2 classes), final accuracy: with the same experiences in
orders of their own ("shuffle") clients alone 17.3, FedAvg 70.3; with classes drawn independently by
each client ("LTP") 12.3 and 32.5. Here 3 experiences of 2 classes; means over seeds 0-2.
"""

from dataclasses import dataclass, replace
from functools import cache
from statistics import mean

import pytest

from fedlearn import records
from fedlearn.config.composition import compose
from fedlearn.config.experiment import Experiment, build, prepare
from fedlearn.evaluation import Evaluator
from fedlearn.run import make_parts
from fedlearn.server import make_server_app
from fedlearn.types import Scenario, Shares

pytestmark = pytest.mark.slow

SHUFFLE = (
    "scenario=split_digits",
    "scenario.sizes=[2,2,2]",
    "scenario.shuffle_classes=true",
    "clock=shuffled",
)
LTP = ("scenario=independent", "scenario.distinct=true")
FIXED = (
    "scenario.num_experiences=3",
    "scenario.held_out=0",
    "num_clients=8",
    "partition=iid",
    "continual=naive",
    "fraction_evaluate=0",
    "tracker=none",
)


class Silent:
    """A tracker that keeps nothing."""

    def event(self, event: object) -> None:
        """Do nothing."""


def final_accuracy(experiment: Experiment, whole: Scenario) -> tuple[float, float]:
    """Return the final accuracy in percent, on clients' own experiences and on all of `whole`."""
    server, client = make_parts(experiment, Silent())  # type: ignore[arg-type]
    with experiment.runtime.open(client) as grid:
        experiment.runtime.run(make_server_app(server), grid)
    accuracy = server.scoreboard.continual(3)["average_accuracy"]
    assert accuracy is not None
    model = experiment.build_model()
    records.load(model, server.parameters, server.buffers)
    scores = Evaluator(10, None).scores(model, whole.test_stream())
    return 100 * accuracy, 100 * mean(score.accuracy for score in scores)


def alone(experiment: Experiment, client_id: int) -> Experiment:
    """Return the same experiment with one of its clients, and nobody else."""
    scenario, schedule = experiment.scenario, experiment.schedule
    own = slice(client_id, client_id + 1)

    def share(shares: Shares) -> Shares:
        return Shares.of([[shares[client_id, index] for index in range(3)]])

    return replace(
        experiment,
        scenario=replace(
            scenario,
            shares=share(scenario.shares),
            held_out=share(scenario.held_out),
            orders=scenario.orders[own],
        ),
        schedule=replace(schedule, begins=schedule.begins[own], ends=schedule.ends[own]),
    )


@dataclass(frozen=True)
class Measured:
    """Final accuracies in percent, means over seeds 0-2.

    Attributes:
        together: Of FedAvg, on what each client has learned itself.
        alone: Of clients that train for themselves, on the same.
        together_on_all: Of FedAvg, on all that anybody has learned.
        alone_on_all: Of clients that train for themselves, on the same.
    """

    together: float
    alone: float
    together_on_all: float
    alone_on_all: float


@cache
def measured(*overrides: str) -> Measured:
    together, lonely = [], []
    for seed in range(3):
        experiment = build(prepare(compose([*overrides, *FIXED, f"seed={seed}"])))
        together.append(final_accuracy(experiment, experiment.scenario))
        lonely += [final_accuracy(alone(experiment, k), experiment.scenario) for k in range(8)]
    (own, everything), (own_alone, everything_alone) = (
        map(mean, zip(*pairs, strict=True)) for pairs in (together, lonely)
    )
    return Measured(own, own_alone, everything, everything_alone)


def test_in_shuffled_orders_clients_remember_for_each_other() -> None:
    shuffle = measured(*SHUFFLE)
    assert shuffle.together - shuffle.alone >= 40
    assert shuffle.together_on_all - shuffle.alone_on_all >= 40


def test_streams_drawn_independently_are_harder_than_shuffled_ones() -> None:
    shuffle, ltp = measured(*SHUFFLE), measured(*LTP)
    assert ltp.together <= shuffle.together - 10
    assert ltp.together - ltp.alone >= 20
    assert ltp.together_on_all <= shuffle.together_on_all - 10
    assert ltp.alone_on_all <= shuffle.alone_on_all - 10
    # On its own experiences a client alone cannot tell one from the other: it keeps the last one.
    for each in (shuffle, ltp):
        assert each.alone == pytest.approx(100 / 3, abs=3)
