"""A site that moves its client on by itself: by a call, or on a date."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from fedlearn.cli import main
from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, prepare
from fedlearn.deployment.folder import init
from fedlearn.deployment.site_clock import SiteClock, note_experience, schedule_at_site
from fedlearn.run import make_parts
from fedlearn.schedule import Schedule
from fedlearn.tracking.tracker import NoTracker

RUN = [
    "clock=on_site",
    "continual=naive",
    "tracker=none",
    "runtime=deployment",
    "runtime.connection=somewhere",
]
DAY = date(2026, 6, 15)


def test_nothing_said_is_the_first_experience(tmp_path: Path) -> None:
    assert SiteClock.read(tmp_path).at(DAY) == 0


def test_what_was_said_is_read_again(tmp_path: Path) -> None:
    clock = SiteClock().advanced(None, None, DAY).advanced(3, "2026-07-01", DAY)
    clock.write(tmp_path)
    assert SiteClock.read(tmp_path) == clock
    assert clock.at(DAY) == 1
    assert clock.at(date(2026, 6, 30)) == 1
    assert clock.at(date(2026, 7, 1)) == 3
    assert clock.at(date(2027, 1, 1)) == 3


@pytest.mark.parametrize("to", [0, 1])
def test_a_clock_does_not_go_back(to: int) -> None:
    with pytest.raises(ConfigError, match=rf"--to={to}: must be above 1, "):
        SiteClock(now=1).advanced(to, None, DAY)


def test_what_is_no_date_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--on=1\.7\.2026: is no date; write it as 2026-12-31"):
        SiteClock().advanced(None, "1.7.2026", DAY)


def test_a_clients_experiences_last_from_when_they_were_seen(tmp_path: Path) -> None:
    nominal = Schedule.in_step(num_clients=3, num_experiences=4, rounds_per_experience=5)
    reached = {1: 0, 2: 0, 3: 1, 8: 3, 9: 3, 20: 7}  # the third is passed over
    for server_round, experience in reached.items():
        seen = note_experience(tmp_path / "run", experience, 4, server_round)
    schedule = schedule_at_site(nominal, 1, seen)
    assert schedule.num_rounds == nominal.num_rounds
    expected = {1: 0, 2: 0, 3: 1, 7: 1, 8: 3, 20: 3}
    assert {at: schedule.experience(1, at) for at in expected} == expected
    for client in (0, 2):  # others' rows are the run's
        assert np.array_equal(schedule.begins[client], nominal.begins[client])
        assert np.array_equal(schedule.ends[client], nominal.ends[client])
    assert schedule.rounds_before(np.array([1]), 10).tolist() == [[2, 5, 0, 2]]


def test_what_was_seen_stays_when_the_node_starts_again(tmp_path: Path) -> None:
    first = note_experience(tmp_path / "run", 1, 3, 4)
    assert note_experience(tmp_path / "run", 1, 3, 9) == first
    assert note_experience(tmp_path / "run", 2, 3, 9) == [*first, 9]


def test_in_step_and_a_site_that_moves_with_the_rounds_are_one_clock(tmp_path: Path) -> None:
    nominal = Schedule.in_step(num_clients=2, num_experiences=3, rounds_per_experience=4)
    for server_round in range(1, 13):
        reached = (server_round - 1) // 4
        seen = note_experience(tmp_path / "run", reached, 3, server_round)
        schedule = schedule_at_site(nominal, 0, seen)
        assert schedule.experience(0, server_round) == reached
    assert np.array_equal(schedule.begins, nominal.begins)
    assert np.array_equal(schedule.ends, nominal.ends)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(init(tmp_path / "d", 2, ["localhost"]).path)
    assert main(["deploy", "advance", folder, "--node", "1"]) == 0
    assert main(["deploy", "advance", folder, "--node", "1", "--on", "2999-01-31"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "node 1 is in experience 1",
        "node 1 is in experience 1; 2 from 2999-01-31",
    ]
    assert main(["deploy", "advance", folder, "--node", "1", "--to", "1"]) == 2
    error = "--to=1: must be above 1, the experience that it is in\n"
    assert capsys.readouterr().err == error
    assert main(["deploy", "advance", folder, "--node", "0"]) == 0  # each has its own
    assert capsys.readouterr().out == "node 0 is in experience 1\n"


def test_a_client_ahead_of_the_server_is_believed() -> None:
    experiment = build(prepare(compose(RUN)))
    server, _ = make_parts(experiment, NoTracker())
    sizes = experiment.scenario.shares.sizes()
    assert server._most_examples(0, 1) == int(sizes[0].max())
