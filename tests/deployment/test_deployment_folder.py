"""The deployment folder: what each machine gets, what it does not get, and mistakes."""

import json
import shutil
import socket

import pytest
from flwr.common import constant

from fedlearn.cli import main
from fedlearn.config.errors import ConfigError
from fedlearn.deployment.folder import FACTS, Folder, init
from fedlearn.deployment.keys import public_pem
from fedlearn.deployment.machines import MOST_AHEAD_S, MOST_BEHIND_S, clock_trouble

NODES = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("work") / "fl"
    init(path, NODES, ["fl.example.org", "10.1.2.3"], 9192, 9193)
    return path


def files(path):
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


def secrets(path):
    """What must stay on its machine, by path."""
    return {
        str(each.relative_to(path)): each.read_bytes()
        for each in path.rglob("*")
        if each.suffix in (".key", ".secret")
    }


def test_init_lays_out_what_each_machine_needs(made):
    expected = {FACTS, "ca.crt", "admin.pub", "ca.key", "admin/admin.key"}
    expected |= {f"server/{each}" for each in ("server.crt", "server.key", "executor.secret")}
    expected |= {f"server/nodes/{number}.pub" for number in range(NODES)}
    part = (FACTS, "ca.crt", "admin.pub", "node.key", "node.pub", "node.json", "executor.secret")
    expected |= {f"nodes/{number}/{each}" for number in range(NODES) for each in part}
    assert expected <= files(made)
    folder = Folder(made)
    facts = folder.facts
    assert (facts.nodes, facts.host, facts.port) == (NODES, "fl.example.org", 9192)
    assert facts.control_port == 9193
    for path in (folder.authority, folder.admin_public, folder.admin_key, folder.server):
        assert path.exists()


def test_every_secret_is_another(made):
    every = list(secrets(made).values())
    assert len(set(every)) == len(every) >= 5 + 2 * NODES - 1


def test_a_nodes_part_alone_is_all_that_its_machine_needs(made, tmp_path):
    for number in range(NODES):
        alone = shutil.copytree(made / "nodes" / str(number), tmp_path / f"part-{number}")
        part = Folder(alone).node(number)
        assert part.path == alone
        assert part.facts == Folder(made).facts
        assert part.authority.read_bytes() == Folder(made).authority.read_bytes()
        assert part.admin_public.read_bytes() == Folder(made).admin_public.read_bytes()
        assert Folder(made).clients_by_key()[public_pem(alone / "node.pub")] == number
        assert json.loads((alone / "node.json").read_text())["node"] == number
        for other in {*range(NODES)} - {number}:
            with pytest.raises(ConfigError, match=f"--node={other}: .* is of node {number}"):
                Folder(alone).node(other)


def test_a_nodes_part_holds_no_secret_of_others(made):
    for number in range(NODES):
        own = made / "nodes" / str(number)
        foreign = {
            value for name, value in secrets(made).items() if not (made / name).is_relative_to(own)
        }
        assert len(foreign) == len(secrets(made)) - 2
        held = b"\0".join(each.read_bytes() for each in own.rglob("*") if each.is_file())
        assert not [secret for secret in foreign if secret in held]


def test_a_part_is_found_from_the_whole_folder_too(made):
    for number in range(NODES):
        assert Folder(made).node(number).path == made / "nodes" / str(number)


def test_init_says_what_comes_next_and_takes_an_empty_folder(tmp_path, capsys):
    (tmp_path / "fl").mkdir()
    folder = str(tmp_path / "fl")
    asked = ["--nodes", "1", "--host", "one", "--host", "two", "--port", "7000"]
    assert main(["deploy", "init", folder, *asked, "--control-port", "7001"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "1 node" in told.out
    assert f"fedlearn deploy superlink {folder}" in told.out
    facts = Folder(tmp_path / "fl").facts
    assert (facts.nodes, facts.host, facts.port, facts.control_port) == (1, "one", 7000, 7001)


def refused(capsys, *arguments):
    assert main(["deploy", *map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.endswith("\n")
    return told.err


def test_init_writes_over_nothing(made, tmp_path, capsys):
    before = {name: (made / name).read_bytes() for name in files(made)}
    assert "never written over" in refused(capsys, "init", made, "--nodes", 2)
    assert {name: (made / name).read_bytes() for name in files(made)} == before
    (tmp_path / "file").write_text("mine")
    assert "exists already" in refused(capsys, "init", tmp_path, "--nodes", 2)
    assert "exists already" in refused(capsys, "init", tmp_path / "file", "--nodes", 2)
    assert files(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--nodes", "0"], "--nodes=0: must be at least 1"),
        (["--nodes", "-3"], "--nodes=-3: must be at least 1"),
        (["--nodes", "many"], "invalid int value: 'many'"),
        ([], "required: --nodes"),
        (["--nodes", "2", "--port", "0"], "--port=0: must be in [1, 65535]"),
        (["--nodes", "2", "--port", "65536"], "--port=65536: must be in [1, 65535]"),
        (["--nodes", "2", "--control-port", "-1"], "--control-port=-1: must be in [1, 65535]"),
        (["--nodes", "2", "--port", "8000", "--control-port", "8000"], "--control-port=8000: is"),
        (["--nodes", "2", "--control-port", "9092"], "--control-port=9092: is nodes' port already"),
        (["--nodes", "2", "--nods", "3"], "unrecognized arguments: --nods"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_init_with_flags_that_make_no_sense_makes_nothing(flags, told, tmp_path, capsys):
    assert told in refused(capsys, "init", tmp_path / "fl", *flags)
    assert not (tmp_path / "fl").exists()


def test_a_node_that_there_is_not_is_refused(made, tmp_path, capsys):
    for number in (-1, NODES):
        told = refused(capsys, "supernode", made, "--node", number)
        assert f"--node={number}: must be in [0, {NODES})" in told
    lean = shutil.copytree(made, tmp_path / "lean")
    shutil.rmtree(lean / "nodes" / "1")
    assert "is not on this machine" in refused(capsys, "supernode", lean, "--node", 1)
    alone = shutil.copytree(made / "nodes" / "2", tmp_path / "part")
    assert "is of node 2" in refused(capsys, "supernode", alone, "--node", 1)
    assert "--threads=0" in refused(capsys, "supernode", alone, "--node", 2, "--threads", 0)
    for port in (0, 70000):
        told = refused(capsys, "supernode", alone, "--node", 2, "--local-port", port)
        assert f"--local-port={port}: must be in [1, 65535]" in told


def test_a_port_that_is_in_use_is_refused_before_anything_starts(made, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refused(capsys, "supernode", made, "--node", 1, "--local-port", port)
        assert told == f"--local-port={port}: is in use on this machine, at 127.0.0.1\n"
    with socket.create_server(("127.0.0.1", 9193)):
        told = refused(capsys, "superlink", made)
        assert told == "--control-port=9193: is in use on this machine, at 127.0.0.1\n"
    told = refused(capsys, "superlink", made, "--listen", "192.0.2.1")
    assert told.startswith("--port=9192: ")
    assert told.endswith(", at 192.0.2.1\n")
    assert not (made / "server" / "logs").exists()


def test_a_part_that_does_not_say_whose_it_is_is_refused(made, tmp_path, capsys):
    part = shutil.copytree(made / "nodes" / "0", tmp_path / "part")
    for text in ("{", "[]", '{"node": "x"}', None):
        (part / "node.json").unlink()
        if text is not None:
            (part / "node.json").write_text(text)
        told = refused(capsys, "supernode", part, "--node", 0)
        assert told.startswith(f"{part / 'node.json'}: is missing or damaged: ")
        (part / "node.json").touch()


def test_a_node_gets_another_key(made, tmp_path, capsys):
    path = shutil.copytree(made, tmp_path / "fl")
    folder, part = Folder(path), path / "nodes" / "1"
    before = folder.clients_by_key()
    old = (part / "node.key").read_bytes()
    assert main(["deploy", "renew", str(path), "--node", "1"]) == 0
    told = capsys.readouterr().out
    assert f"{part}: has another key" in told
    assert "until the server is started anew, the old key is taken: no SuperLink answers" in told
    after = folder.clients_by_key()
    assert len(after) == NODES
    assert {k: n for k, n in before.items() if n != 1} == {k: n for k, n in after.items() if n != 1}
    assert after[public_pem(part / "node.pub")] == 1
    assert public_pem(part / "node.pub") not in before
    assert (part / "node.key").read_bytes() != old
    assert (part / "node.key").stat().st_mode & 0o777 == 0o600
    assert files(path) == files(made)
    shutil.rmtree(part)
    assert "is not on this machine" in refused(capsys, "renew", path, "--node", 1)


@pytest.mark.parametrize(
    ("ahead", "told"),
    [
        (0.0, None),
        (4.9, None),
        (-299.0, None),
        (60.0, "is 60 s ahead of the server's"),
        (-3600.0, "is 3600 s behind the server's"),
    ],
)
def test_a_clock_that_the_server_would_refuse_is_told(ahead, told):
    why = clock_trouble(1_000_000.0, 1_000_000.0 + ahead)
    assert why is None if told is None else told in why


def test_clocks_may_differ_by_what_flower_takes():
    assert constant.SYSTEM_TIME_TOLERANCE == MOST_AHEAD_S
    assert constant.TIMESTAMP_TOLERANCE == MOST_BEHIND_S


ACTIONS = {
    "superlink": [],
    "supernode": ["--node", "0"],
    "status": [],
    "renew": ["--node", "0"],
    "stop": ["--run", "1"],
}


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_no_deployment_folder_is_refused(action, tmp_path, capsys):
    (tmp_path / "file").write_text("{}")
    for path in (tmp_path, tmp_path / "file", tmp_path / "none"):
        told = refused(capsys, action, path, *ACTIONS[action])
        assert f"{path}: is no deployment folder" in told


@pytest.mark.parametrize("action", sorted(ACTIONS.keys() - {"supernode"}))
def test_a_nodes_part_is_not_the_servers(action, made, tmp_path, capsys):
    part = shutil.copytree(made / "nodes" / "0", tmp_path / "part")
    told = refused(capsys, action, part, *ACTIONS[action])
    assert f"{part}: is not the server's" in told


def test_unknown_commands_are_refused_and_help_is_not(capsys):
    assert "did you mean init" in refused(capsys, "inti", "fl")
    assert main(["deploy"]) == main(["deploy", "init", "--help"]) == 0
    assert "fedlearn deploy COMMAND" in capsys.readouterr().out


def test_a_run_whose_connection_is_no_deployment_folder_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "runtime=deployment", f"runtime.connection={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"runtime.connection={tmp_path}: is no deployment folder" in told


def test_a_damaged_folder_says_so_in_one_line(tmp_path, capsys):
    folder = init(tmp_path / "fl", 1, ["localhost"]).path
    for text in ("{", "[]", '{"nodes": 1}'):
        (folder / "deployment.json").write_text(text)
        assert main(["deploy", "supernode", str(folder), "--node", "0"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{folder / 'deployment.json'}: is damaged: ")
