"""A deployment of three nodes on loopback, with Flower's own processes, TLS and authentication."""

import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from deployed import (
    QUIET,
    SMALL,
    Deployed,
    events_of,
    finished,
    free_port,
    rounds_of,
    run_dir_of,
    serial,
    summary_of,
    wait_for_round,
)
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedlearn.config.composition import compose
from fedlearn.deployment.configuration import CONFIGURATION, SIGNATURE, signed
from fedlearn.deployment.control import Control
from fedlearn.deployment.folder import init
from fedlearn.deployment.submission import LostRunError, follow

SHORT = [*SMALL, "rounds_per_experience=1"]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    out = tmp_path_factory.mktemp("deployed")
    folder = init(out / "deployment", 3, ["localhost"], free_port(), free_port())
    machines = Deployed(folder, out)
    try:
        machines.start()
        yield machines
    finally:
        machines.stop()


def test_serial_and_deployment_give_the_same_digest(deployed: Deployed, tmp_path: Path) -> None:
    process = deployed.submit(SHORT)
    with finished(process):
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    run_dir = run_dir_of(deployed.out)
    summary, reference = summary_of(run_dir), serial(tmp_path, SHORT)
    assert summary["digest"] == reference["digest"]
    assert summary["accuracy_matrix"] == reference["accuracy_matrix"]
    for section in ("comm", "work", "turns", "storage", "client_accuracy_matrix"):
        assert summary[section] == reference[section]
    assert "round 5/5" in out
    assert {"metrics.jsonl", "manifest.json", "plots"} <= {each.name for each in run_dir.iterdir()}
    # the clients' states are on their own disks, and nowhere on the server's
    for number in range(3):
        (state,) = (deployed.folder.path / "nodes" / str(number) / "states").glob("*/state")
        assert state.stat().st_mode & 0o777 == 0o600
    assert not list(deployed.folder.server.glob("**/state"))


def test_everything_that_left_a_node_is_on_its_record(deployed: Deployed) -> None:
    told = deployed.ask(["deploy", "audit", str(deployed.folder.path), "--node", "1"])
    assert told.returncode == 0
    lines = told.stdout.splitlines()
    assert sum("  train: 5 messages, " in line for line in lines) == 1
    assert sum("  evaluate: 5 messages, 0 bytes of arrays" in line for line in lines) == 1
    names = {line[13:].split()[0] for line in lines if line.startswith("    ")}
    arrays = {name for name in names if name.startswith("arrays/")}
    assert len(arrays) == 4  # the model's weights
    assert names - arrays <= {
        *("num-examples", "train_loss", "steps", "replayed", "state-bytes"),
        *("node-seconds", "node-load", "node-memory", "correct", "accuracy"),
    }


def test_nodes_tell_how_busy_they_are(deployed: Deployed) -> None:
    for event in rounds_of(run_dir_of(deployed.out)):
        for told in event["clients"].values():
            assert 0 < told["node_seconds"] <= told["node_round_trip_s"]
            assert 0 < told["node_memory"] < 1
            assert told["node_load"] >= 0


def test_a_configuration_that_was_changed_is_refused(deployed: Deployed) -> None:
    carried = signed("run-1", compose(SHORT), deployed.folder.admin_key)
    changed = carried[CONFIGURATION].replace('"seed": 0', '"seed": 1')
    assert changed != carried[CONFIGURATION]
    control = Control(deployed.folder)
    for wrong in ({**carried, CONFIGURATION: changed}, {**carried, SIGNATURE: ""}):
        run_id = control.submit(wrong)
        with pytest.raises(LostRunError, match="the run's configuration is refused: "):
            list(follow(control, run_id))
    control.close()


def test_more_clients_than_nodes_are_refused_before_anything_is_sent(deployed: Deployed) -> None:
    told = deployed.ask(
        ["run", "runtime=deployment", f"runtime.connection={deployed.folder.path}", "num_clients=4"]
    )
    assert told.returncode == 2
    assert told.stderr == "num_clients=4: deployment has 3 nodes, each of them one client\n"


def test_a_node_of_another_deployment_is_told_that_this_is_not_its_server(
    deployed: Deployed, tmp_path: Path
) -> None:
    port = deployed.folder.facts.port
    other = init(tmp_path / "other", 1, ["localhost"], port, free_port())
    told = subprocess.run(
        deployed.command("0", ["deploy", "supernode", str(other.path), "--node", "0"]),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **QUIET},
    )
    assert told.returncode == 2
    assert told.stderr.startswith(f"localhost:{port}: is not the server of this deployment, ")
    assert len(told.stderr.splitlines()) == 1


def test_control_is_not_reached_where_nodes_are(deployed: Deployed) -> None:
    base = f"https://localhost:{deployed.folder.facts.port}"
    trust = ssl.create_default_context(cafile=str(deployed.folder.authority))
    with httpx.Client(verify=trust) as client:
        for path in ("/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/control/start-run"):
            assert client.post(base + path, content=b"").status_code == 403
    with httpx.Client() as client, pytest.raises(httpx.TransportError):
        client.post(f"http://localhost:{deployed.folder.facts.port}/v1/fleet/get-run")


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_a_run_whose_server_dies_goes_on_from_its_checkpoint(
    deployed: Deployed, tmp_path: Path
) -> None:
    run = [*SMALL, "rounds_per_experience=2"]
    before = set(deployed.out.glob("runs/*/*"))
    process = deployed.submit(run)
    with finished(process):
        wait_for_round(process, 4)
        deployed.kill("server", "flwr-serverapp")
        _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    (run_dir,) = set(deployed.out.glob("runs/*/*")) - before
    starts = [event for event in events_of(run_dir) if event["event"] == "start"]
    # the round that was just told of may or may not have had its checkpoint
    assert [event.get("resumed_from") in (3, 4) for event in starts] == [False, True]
    assert summary_of(run_dir)["digest"] == serial(tmp_path, run)["digest"]


def test_sites_with_data_of_their_own_give_the_digest_of_the_same_split_here(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 6, 240)
    x = rng.normal(y[:, None] - 3.0, 1.5, (240, 8)).astype(np.float32)
    owners = rng.integers(0, 2, 240)  # and nobody in particular has all classes
    owners[y == 5] = 0
    test_y = np.repeat(np.arange(6), 10)
    test_x = rng.normal(test_y[:, None] - 3.0, 1.5, (60, 8)).astype(np.float32)
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    np.savez(tmp_path / "server.npz", x_test=test_x, y_test=test_y)
    for site in (0, 1):
        mine = owners == site
        np.savez(tmp_path / f"site{site}.npz", x_train=x[mine], y_train=y[mine])
    rows = [np.flatnonzero(owners == site).tolist() for site in (0, 1)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    run = [
        *("dataset=arrays", "dataset.num_classes=6", "scenario=class_incremental"),
        *("scenario.num_experiences=2", "scenario.held_out=0", "rounds_per_experience=2"),
        *("num_clients=2", "engine=functional", "continual=ewc", "local.epochs=1", "tracker=none"),
    ]
    folder = init(tmp_path / "deployment", 2, ["localhost"], free_port(), free_port())
    machines = Deployed(folder, tmp_path)
    try:
        machines.start_server()
        for site in (0, 1):
            machines.start_node(site, ["--data", str(tmp_path / f"site{site}.npz")])
        machines.wait_for_nodes(2)
        own = [f"dataset.path={tmp_path / 'server.npz'}", "partition=on_site"]
        process = machines.submit([*run, *own])
        with finished(process):
            _, err = process.communicate(timeout=280)
    finally:
        machines.stop()
    assert process.returncode == 0, err
    whole = [f"dataset.path={tmp_path / 'all.npz'}", "partition=from_file"]
    there = f"partition.path={tmp_path / 'rows.json'}"
    reference = serial(tmp_path, [*run, *whole, there])
    assert summary_of(run_dir_of(tmp_path))["digest"] == reference["digest"]


def test_a_key_that_was_renewed_is_refused_and_the_new_one_taken(
    deployed: Deployed, tmp_path: Path
) -> None:
    control = Control(deployed.folder)
    (before,) = (node for node in control.nodes() if node.client_id == 2)
    part = deployed.folder.path / "nodes" / "2"
    old = (part / "node.key").read_bytes()
    told = deployed.ask(["deploy", "renew", str(deployed.folder.path), "--node", "2"])
    assert told.stdout.splitlines()[1] == "the old key is refused from now on"
    (after,) = (node for node in control.nodes() if node.client_id == 2)
    assert after.node_id != before.node_id
    assert len(control.nodes()) == 3
    control.close()
    deployed.wait_for_nodes(3)  # its SuperNode has ended, and come back with the new key
    lost = tmp_path / "node.key"
    lost.write_bytes(old)
    with pytest.raises(httpx.HTTPStatusError, match="412 Precondition Failed"):
        activate(deployed, lost)


def activate(deployed: Deployed, key_path: Path) -> None:
    """Come to the server as a SuperNode with this key does."""
    key = serialization.load_ssh_private_key(key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    facts = deployed.folder.facts
    with FleetHttpClient.from_server_address(
        f"localhost:{facts.port}",
        insecure=False,
        root_certificates=deployed.folder.authority.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    ) as client:
        public = public_key_to_bytes(key.public_key())
        client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30))
