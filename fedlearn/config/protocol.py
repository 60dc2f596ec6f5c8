"""The protocol of a run: which keys define it, how to repeat one from its manifest, and the check.

A manifest holds the protocol twice: as what was asked for (``protocol``: choices and settings), and
as what came of it (samples by digest, who holds which rows), whose ``hash`` says whether two runs
put the same data in the same hands at the same time.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError, shown
from fedlearn.config.raw import quoted

GROUPS = ("scenario", "dataset", "partition", "clock", "skew")
"""The groups that define a protocol; the scenario first, because it may choose the dataset."""
KEYS = ("seed", "num_clients", "rounds_per_experience")
"""The other keys that do."""
MANIFEST = "manifest.json"
_KEY = "manifest="


def protocol_of(composed: Composed) -> dict[str, Any]:
    """Return what of a configuration defines its protocol, as JSON values."""
    groups = {
        group: {"choice": composed.choices[group], **composed.tree[group]} for group in GROUPS
    }
    return {**{key: composed.tree[key] for key in KEYS}, **groups}


def expand(overrides: Sequence[str]) -> list[str]:
    """Return `overrides` with what ``manifest=FILE`` stands for before those of the user's own.

    Raises:
        ConfigError: The file is no manifest of a run.
    """
    named = [text.removeprefix(_KEY) for text in overrides if text.startswith(_KEY)]
    if not named or named[-1] in ("null", ""):
        return list(overrides)
    protocol = read_manifest(named[-1]).get("protocol")
    if not isinstance(protocol, Mapping) or not {*GROUPS, *KEYS} <= protocol.keys():
        raise ConfigError(f"manifest={named[-1]}: does not say how it was made; it lacks protocol")
    chosen = {text.partition("=")[0] for text in overrides}
    groups = [group for group in GROUPS if group not in chosen]  # another choice, other keys
    asked = [f"{key}={_written(protocol[key])}" for key in KEYS]
    asked += [f"{group}={protocol[group]['choice']}" for group in groups]
    for group in groups:
        for key, value in protocol[group].items():
            if key != "choice":
                asked.append(f"{group}.{key}={_written(value)}")
    return [*asked, *overrides]


def read_manifest(place: str) -> dict[str, Any]:
    """Return the manifest in a file, or in a run's directory.

    Raises:
        ConfigError: There is none.
    """
    path = Path(place).expanduser()
    path = path / MANIFEST if path.is_dir() else path
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"manifest={place}: cannot be read: {error}") from error
    if not isinstance(manifest, dict) or "hash" not in manifest:
        raise ConfigError(f"manifest={place}: {path.name} is no manifest of a run; it lacks hash")
    return manifest


def check_same(place: str, manifest: Mapping[str, Any]) -> None:
    """Check that what was built is what the manifest at `place` says.

    Raises:
        ConfigError: It is another protocol; the message names what differs.
    """
    wanted = read_manifest(place)
    if wanted["hash"] == manifest["hash"]:
        return
    different = sorted(
        key
        for key in (wanted.keys() | manifest.keys()) - {"hash", "protocol"}
        if wanted.get(key) != manifest.get(key)
    )
    raise ConfigError(
        f"manifest={place}: this is another protocol: it differs in {', '.join(different)}; remove "
        "what changes it, or remove manifest"
    )


def _written(value: Any) -> str:
    """Return a JSON value in Hydra's override grammar."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(each) for each in value) + "]"
    return shown(value)
