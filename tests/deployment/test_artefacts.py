"""What `fedlearn deploy init` writes to start a deployment: it parses, hides what must be hidden,
and tells of nothing that is only true where it was made."""

import os
import re
import shutil
import stat
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

import fedlearn
from fedlearn.cli import main
from fedlearn.deployment.artefacts import NODE_HOME, PROGRAM, SERVER_HOME
from fedlearn.deployment.folder import SERVICE

NODES, PORT, CONTROL_PORT = 3, 18092, 18093
HOST = "fl.example.org"
IMAGE = f"fedlearn:{fedlearn.__version__}"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
PRIVATE = {"ca.key", "admin.key", "server.key", "node.key", "executor.secret"}
UNITS = {
    "systemd/fedlearn-superlink.service": SERVER_HOME,
    **{
        f"nodes/{node}/fedlearn-supernode.service": NODE_HOME.format(node=node)
        for node in range(NODES)
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment that was made by a relative path."""
    home = tmp_path_factory.mktemp("where-it-was-made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main([*_init("my-folder", NODES)]) == 0
    return home / "my-folder"


def _init(folder: str, nodes: int) -> list[str]:
    ports = ["--port", str(PORT), "--control-port", str(CONTROL_PORT)]
    return ["deploy", "init", folder, "--nodes", str(nodes), "--host", HOST, *ports]


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_private_files_are_their_owners_and_nobody_elses(made: Path) -> None:
    private = [path for path in _files(made) if path.name in PRIVATE]
    assert len(private) == 4 + 2 * NODES
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_no_other_file_holds_a_private_key(made: Path) -> None:
    secrets = [path.read_bytes().strip() for path in _files(made) if path.name in PRIVATE]
    for path in _files(made):
        if path.name not in PRIVATE:
            content = path.read_bytes()
            assert b"PRIVATE KEY" not in content, path
            assert not any(secret in content for secret in secrets), path


def test_what_travels_tells_of_no_path_here(made: Path) -> None:
    for path in _files(made):
        content = path.read_bytes()
        assert str(made.parent).encode() not in content, path
        if path.name != "ca.crt":  # it has the folder's name as its own
            assert made.name.encode() not in content, path
        assert b"{{" not in content, path


def test_a_hundred_nodes_are_made_in_no_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert main(_init(str(tmp_path / "many"), 100)) == 0
    assert time.monotonic() - begun < 5.0  # half a second, on an idle machine
    assert len(list((tmp_path / "many" / "nodes").iterdir())) == 100


@pytest.mark.parametrize("script", ["start-superlink.sh", "nodes/2/start.sh"])
@pytest.mark.parametrize("by", ["PATH", "FEDLEARN"])
def test_a_script_starts_the_command_wherever_it_is(
    script: str, by: str, made: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "a place" / "of its own"
    shutil.copytree(made, moved)
    program = tmp_path / "bin" / ("fedlearn" if by == "PATH" else "another")
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nenv\n')
    program.chmod(0o755)
    found = {"PATH": f"{program.parent}:/usr/bin:/bin"} if by == "PATH" else {by: str(program)}
    path = moved / script
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    subprocess.run(["bash", "-n", str(path)], check=True)
    told = subprocess.run(
        [str(path), "--extra", "with a space"],
        env={"PATH": "/usr/bin:/bin", **found},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if script == "start-superlink.sh":
        expected = ["deploy", "superlink", str(moved)]
    else:
        expected = ["deploy", "supernode", str(path.parent), "--node", "2"]
    assert told[: len(expected) + 2] == [*expected, "--extra", "with a space"]
    assert {f"{name}={value}" for name, value in QUIET.items()} <= set(told)


def _unit(text: str) -> dict[str, dict[str, list[str]]]:
    """Return a unit's values by section and key; a key may be there more than once."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_its_script_again_and_again_and_may_do_little_else(
    name: str, made: Path
) -> None:
    home = UNITS[name]
    unit = _unit((made / name).read_text())
    service = unit["Service"]
    assert unit["Install"]["WantedBy"] == ["multi-user.target"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"]
    for key, value in {
        "User": "fedlearn",
        "Restart": "always",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "CapabilityBoundingSet": "",
        "ReadWritePaths": home if "supernode" in name else f"{home}/server",
    }.items():
        assert service[key] == [value]
    environment = dict(each.split("=", 1) for each in service["Environment"])
    assert QUIET.items() <= environment.items()
    assert environment["FEDLEARN"] == PROGRAM
    (command,) = service["ExecStart"]
    script = made / name
    script = script.parent / "start.sh" if "supernode" in name else made / "start-superlink.sh"
    assert command.split()[0] == f"{home}/{script.name}"
    assert script.exists()
    if "superlink" in name:
        (hidden,) = service["InaccessiblePaths"]
        assert hidden.split() == [f"-{home}/admin", f"-{home}/ca.key", f"-{home}/nodes"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, made: Path, tmp_path: Path) -> None:
    # in the places that this machine has
    home = (made / name).parent if "supernode" in name else made
    path = tmp_path / Path(name).name
    path.write_text((made / name).read_text().replace(UNITS[name], str(home)))
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    ours = [line for line in told.stderr.splitlines() if "fedlearn" in line]
    assert ours == []
    assert told.returncode == 0, told.stderr


def _compose(made: Path) -> dict[str, Any]:
    return yaml.safe_load((made / "compose.yaml").read_text())  # type: ignore[no-any-return]


def test_compose_publishes_nodes_port_and_no_other(made: Path) -> None:
    compose = _compose(made)
    services = compose["services"]
    assert set(services) == {"superlink", "admin", *(f"node-{node}" for node in range(NODES))}
    assert {name: each["ports"] for name, each in services.items() if "ports" in each} == {
        "superlink": [f"{PORT}:{PORT}"]
    }
    for name, service in services.items():
        assert service["image"] == IMAGE
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        # who submits has to reach the server's own loopback, nodes must not
        if name == "admin":
            assert service["network_mode"] == "service:superlink"
            assert service["profiles"] == ["admin"]
        else:
            assert service["networks"] == ["fedlearn"]
            assert "network_mode" not in service


def test_a_container_sees_its_own_part_and_writes_to_its_own_volume(made: Path) -> None:
    compose = _compose(made)
    volumes: list[str] = []
    for name, service in compose["services"].items():
        mounts = [each.split(":") for each in service["volumes"]]
        files = [Path(mount[0]) for mount in mounts if mount[0].startswith("./")]
        written = [mount[0] for mount in mounts if not mount[0].startswith("./")]
        assert all(mount[2:] == ["ro"] for mount in mounts if mount[0].startswith("./"))
        assert all((made / path).exists() for path in files)
        assert len(written) == 1
        volumes += written
        keys = {str(path) for path in files if path.name in PRIVATE}
        if name == "superlink":
            assert keys == {"server/server.key", "server/executor.secret"}
        elif name == "admin":
            assert keys == {"admin/admin.key"}
        else:
            part = f"nodes/{name.removeprefix('node-')}"
            assert keys == {f"{part}/node.key", f"{part}/executor.secret"}
            assert {str(path.parent) for path in files} == {part, "containers"}
            # nothing that a node has at home is missing
            assert {path.name for path in files} >= {"node.json", "ca.crt", "admin.pub"}
    assert sorted(volumes) == sorted(compose["volumes"])  # nobody shares one


def test_containers_call_the_server_by_its_services_name(made: Path) -> None:
    inside = yaml.safe_load((made / "containers" / "deployment.json").read_text())
    outside = yaml.safe_load((made / "deployment.json").read_text())
    assert outside["host"] == HOST
    assert inside == {**outside, "host": SERVICE}
    assert SERVICE in _compose(made)["services"]
    certificate = x509.load_pem_x509_certificate((made / "server" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {SERVICE, HOST} <= set(names.get_values_for_type(x509.DNSName))


def test_the_image_has_this_version_and_no_keys(made: Path) -> None:
    text = (made / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines[0] == "FROM python:3.11-slim"
    assert f"ARG FEDLEARN=fedlearn=={fedlearn.__version__}" in lines
    (install,) = (line for line in lines if "pip install" in line)
    assert '"$FEDLEARN"' in install
    assert f"flwr=={metadata.version('flwr')}" in install.split()
    assert "USER fedlearn" in lines
    assert lines.index("USER fedlearn") < lines.index('ENTRYPOINT ["fedlearn"]')
    for name, value in QUIET.items():
        assert f"{name}={value}" in text
    ignored = [x for x in (made / ".dockerignore").read_text().splitlines() if x[:1] != "#"]
    assert ignored == ["*", "!Dockerfile", "!*.whl"]
    assert [line for line in lines if line.startswith(("COPY", "ADD"))] == [
        "COPY Dockerfile *.whl /wheels/"
    ]


def _objects(made: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((made / "kubernetes.yaml").read_text()))


def _of_kind(made: Path, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in _objects(made) if each["kind"] == kind}


def test_kubernetes_has_all_parts_in_one_namespace_and_no_secret(made: Path) -> None:
    kinds = sorted(each["kind"] for each in _objects(made))
    assert kinds == sorted(
        ["Namespace", "Service", "StatefulSet", *["NetworkPolicy"] * 2]
        + ["Deployment", "PersistentVolumeClaim"] * NODES
    )
    for each in _objects(made):
        assert each["metadata"].get("namespace", "fedlearn") == "fedlearn"
    # they are made of files that are there
    text = (made / "kubernetes.yaml").read_text()
    for path in re.findall(r"--from-file=(\S+)", text):
        assert (made / path.replace("$K", "0")).exists()
    assert f"seq 0 {NODES - 1})" in text


def test_kubernetes_lets_nodes_port_be_reached_and_no_other(made: Path) -> None:
    (service,) = _of_kind(made, "Service").values()
    assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [
        (PORT, PORT)
    ]
    policies = _of_kind(made, "NetworkPolicy")
    ingress = policies["superlink"]["spec"]["ingress"]
    assert ingress == [{"ports": [{"protocol": "TCP", "port": PORT}]}]
    assert policies["nodes"]["spec"]["ingress"] == []
    superlink = _of_kind(made, "StatefulSet")["superlink"]["spec"]["template"]
    selected = policies["superlink"]["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= superlink["metadata"]["labels"].items()
    assert str(CONTROL_PORT) not in yaml.safe_dump_all(_objects(made))


def test_a_pod_sees_its_own_secret_and_writes_to_its_own_volume(made: Path) -> None:
    pods = {
        name: each["spec"]["template"]["spec"]
        for kind in ("StatefulSet", "Deployment")
        for name, each in _of_kind(made, kind).items()
    }
    assert set(pods) == {"superlink", *(f"node-{node}" for node in range(NODES))}
    for name, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        assert container["image"] == IMAGE
        assert QUIET.items() <= {x["name"]: x["value"] for x in container["env"]}.items()
        assert container["securityContext"]["readOnlyRootFilesystem"]
        secrets = {x["secret"]["secretName"] for x in pod["volumes"] if "secret" in x}
        assert secrets == {name}
        kept = (x["persistentVolumeClaim"] for x in pod["volumes"] if "persistentVolumeClaim" in x)
        claims = {claim["claimName"] for claim in kept}
        assert claims == (set() if name == "superlink" else {name})
        for mount in container["volumeMounts"]:
            assert mount["name"] in {"written", "tmp"} or mount["readOnly"]
    for name, deployment in _of_kind(made, "Deployment").items():
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}  # its key is used once
        node = name.removeprefix("node-")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["deploy", "supernode", "/deployment", "--node", node]


def test_the_readme_names_what_is_there_and_what_is_secret(made: Path) -> None:
    text = (made / "README.md").read_text()
    assert f"{HOST}:{PORT}" in text
    assert f"-L {CONTROL_PORT}:127.0.0.1:{CONTROL_PORT}" in text
    for path in _files(made):
        if path.name in PRIVATE:
            assert re.sub(r"nodes/\d", "nodes/K", str(path.relative_to(made))) in text
    assert "adding one later is not supported" in text
