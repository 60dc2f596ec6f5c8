"""What goes wrong on real networks, in network namespaces: runs complete, and with the same weights
as a run in which the same clients missed the same rounds."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from deployed import (
    SMALL,
    Deployed,
    finished,
    rounds_of,
    run_dir_of,
    serial,
    summary_of,
    wait_for_round,
)
from flwr.app import Message
from networks import Network, why_not

from fedlearn import records
from fedlearn.deployment.folder import init
from fedlearn.runtimes.inprocess import InProcessGrid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]

SHORT, LONG = 3, 8
"""Rounds an experience; the longer run is one that a client is still back for after 75 s."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    made = Network(nodes=3)
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def deployed(network: Network, tmp_path: Path) -> Iterator[Deployed]:
    folder = init(tmp_path / "deployment", 3, [network.server_address])
    machines = Deployed(folder, tmp_path, network.within())
    try:
        machines.start()
        yield machines
    finally:
        machines.stop()


def _link_cut_15_s(machines: Deployed, network: Network) -> None:
    network.cut("1")
    time.sleep(15)
    network.mend("1")


def _link_cut_75_s(machines: Deployed, network: Network) -> None:
    network.cut("1")
    time.sleep(75)
    network.mend("1")


def _node_killed(machines: Deployed, network: Network) -> None:
    machines.kill("1", "flower-supernode")


def _trainer_killed(machines: Deployed, network: Network) -> None:
    machines.kill("1", "trainer")


def _superlink_killed(machines: Deployed, network: Network) -> None:
    machines.kill("server", "flower-superlink")


def _straggler(machines: Deployed, network: Network) -> None:
    trainer = machines.children("1")["trainer"]
    os.kill(trainer, signal.SIGSTOP)
    time.sleep(32)  # long enough for a test and a round that go on without it
    os.kill(trainer, signal.SIGCONT)


FAULTS: dict[str, tuple[Callable[[Deployed, Network], None], int, list[str], bool]] = {
    "link cut 15 s": (_link_cut_15_s, SHORT, [], False),
    "link cut 75 s": (_link_cut_75_s, LONG, [], True),
    "SuperNode killed": (_node_killed, SHORT, [], False),
    "trainer killed": (_trainer_killed, SHORT, [], False),
    "SuperLink killed": (_superlink_killed, SHORT, [], False),
    "straggler": (_straggler, SHORT, ["runtime.round_s=12"], True),
}
"""What happens, the rounds an experience, other overrides, and whether client 1 must have missed
rounds; it may have where it need not."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_completes_as_if_the_same_clients_had_missed_the_same_rounds(
    fault: str, deployed: Deployed, network: Network, tmp_path: Path
) -> None:
    happen, rounds, overrides, misses = FAULTS[fault]
    run = [*SMALL, f"rounds_per_experience={rounds}"]
    process = deployed.submit([*run, "runtime.gather_s=1", *overrides])
    with finished(process):
        wait_for_round(process, 3)
        happen(deployed, network)
        _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    run_dir = run_dir_of(tmp_path)
    accepted = [set(map(int, event["clients"])) for event in rounds_of(run_dir)]
    assert len(accepted) == 5 * rounds
    assert all({0, 2} <= clients for clients in accepted)
    assert accepted[-1] == {0, 1, 2}  # it is back
    if misses:
        assert any(1 not in clients for clients in accepted)
    with patch.object(InProcessGrid, "send_and_receive", _losing(accepted)):
        reference = serial(tmp_path, run)
    assert summary_of(run_dir)["digest"] == reference["digest"]


def _losing(accepted: list[set[int]]) -> Callable[..., Any]:
    """Return a grid's `send_and_receive` that loses the replies of those not accepted."""
    whole = InProcessGrid.send_and_receive

    def send_and_receive(grid: InProcessGrid, messages: Any, **settings: Any) -> list[Message]:
        asked = list(messages)
        replies = list(whole(grid, asked, **settings))
        if not asked or asked[0].metadata.message_type != "train":
            return replies
        now = accepted[records.read_instruction(asked[0]).server_round - 1]
        return [
            reply
            if message.metadata.dst_node_id - 1 in now
            else records.error_reply(message, "lost")
            for message, reply in zip(asked, replies, strict=True)
        ]

    return send_and_receive
