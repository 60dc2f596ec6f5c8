"""What clients gain from each other when their streams differ, as DCFCL reports it, on digits.

DCFCL (EMNIST, 8 clients, 6 experiences of 2 classes), final accuracy: with the same experiences in
orders of their own ("shuffle") clients alone 17.3, FedAvg 70.3; with classes drawn independently by
each client ("LTP") 12.3 and 32.5. Here 3 experiences of 2 classes; means over seeds 0-2.
"""

from dataclasses import replace
from functools import cache
from statistics import mean

import pytest

from fedlearn.client import make_client_app
from fedlearn.config.composition import compose
from fedlearn.config.experiment import Experiment, build, prepare
from fedlearn.run import make_parts
from fedlearn.server import make_server_app
from fedlearn.types import Shares

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


def final_accuracy(experiment: Experiment) -> float:
    """Return the final average accuracy in percent."""
    server, client = make_parts(experiment, Silent())  # type: ignore[arg-type]
    experiment.runtime.run(
        make_server_app(server), make_client_app(client), experiment.scenario.num_clients
    )
    accuracy = server.scoreboard.continual(3)["average_accuracy"]
    assert accuracy is not None
    return 100 * accuracy


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


@cache
def measured(*overrides: str) -> tuple[float, float]:
    """Return what clients reach together, by FedAvg, and each alone; means over seeds 0-2."""
    together, lonely = [], []
    for seed in range(3):
        experiment = build(prepare(compose([*overrides, *FIXED, f"seed={seed}"])))
        together.append(final_accuracy(experiment))
        lonely.append(mean(final_accuracy(alone(experiment, k)) for k in range(8)))
    return mean(together), mean(lonely)


def test_in_shuffled_orders_clients_remember_for_each_other() -> None:
    together, lonely = measured(*SHUFFLE)
    assert together - lonely >= 40


def test_streams_drawn_independently_are_harder_than_shuffled_ones() -> None:
    together, lonely = measured(*LTP)
    assert together <= measured(*SHUFFLE)[0] - 10
    assert together - lonely >= 20
    # A client alone cannot tell: it keeps its last experience, whatever the others learn.
    assert lonely == pytest.approx(100 / 3, abs=3)
    assert measured(*SHUFFLE)[1] == pytest.approx(100 / 3, abs=3)
