"""What starts a deployment: scripts, systemd units, containers, and a README of what goes where.

All from templates in `templates/`. They travel to other machines, so they tell of no path on this
one: units expect `SERVER_HOME` and `NODE_HOME`, everything else finds its own folder. They hold no
keys, only the names of the files that do.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata, resources
from pathlib import Path

from fedlearn.deployment.folder import SERVICE, Facts, Folder

SERVER_HOME = "/opt/fedlearn/deployment"
NODE_HOME = "/opt/fedlearn/node-{node}"
PROGRAM = "/opt/fedlearn/venv/bin/fedlearn"
"""Where systemd units expect the server's folder, a node's part, and the program."""

SCRIPT = 0o755

_NODE_FILES = {
    "start.sh": "start-supernode.sh",
    "fedlearn-supernode.service": "supernode.service",
    "README.md": "README-node.md",
}
_SERVER_FILES = {
    "start-superlink.sh": "start-superlink.sh",
    "systemd/fedlearn-superlink.service": "superlink.service",
    "Dockerfile": "Dockerfile",
    ".dockerignore": "dockerignore",
    "README.md": "README.md",
}
"""Templates by the file that they become."""


def write_artefacts(folder: Folder) -> None:
    """Write what starts a deployment into its folder, and into each node's part.

    Args:
        folder: New.
    """
    facts = folder.facts
    known = _known(facts)
    nodes = [{**known, "node": str(k), "node_home": _node_home(k)} for k in range(facts.nodes)]
    _write_all(folder.path, _SERVER_FILES, known)
    for number, node in enumerate(nodes):
        _write_all(folder.path / "nodes" / str(number), _NODE_FILES, node)

    services, objects = _template("compose-node.yaml"), _template("kubernetes-node.yaml")
    volumes = "".join(f"  node-{number}:\n" for number in range(facts.nodes))
    compose = {
        "node_services": "".join(_filled(services, node) for node in nodes),
        "node_volumes": volumes.rstrip("\n"),
    }
    _write(folder.path / "compose.yaml", _filled(_template("compose.yaml"), {**known, **compose}))
    cluster = [_filled(_template("kubernetes.yaml"), known)]
    cluster += [_filled(objects, node) for node in nodes]
    _write(folder.path / "kubernetes.yaml", "".join(cluster))

    # in a network of containers the server has the name of its service, whatever it is elsewhere
    inside = json.dumps(asdict(replace(facts, host=SERVICE)), indent=2) + "\n"
    _write(folder.path / "containers" / "deployment.json", inside)


def _known(facts: Facts) -> dict[str, str]:
    versions = {name: metadata.version(name).partition("+")[0] for name in ("torch", "numpy")}
    return {
        **{key: str(value) for key, value in asdict(facts).items()},
        **versions,
        "last": str(facts.nodes - 1),
        "server_home": SERVER_HOME,
        "program": PROGRAM,
    }


def _node_home(number: int) -> str:
    return NODE_HOME.format(node=number)


def _template(name: str) -> str:
    path = resources.files("fedlearn.deployment") / "templates" / name
    return path.read_text(encoding="utf-8")


def _filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template)


def _write_all(home: Path, files: Mapping[str, str], values: Mapping[str, str]) -> None:
    for name, template in files.items():
        _write(home / name, _filled(_template(template), values))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if path.suffix == ".sh":
        path.chmod(SCRIPT)
