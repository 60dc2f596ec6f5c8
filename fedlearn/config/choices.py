"""The configuration on disk: its groups, their choices, and what each file says about itself.

Reads files only and imports neither Hydra nor torch, so that help answers at once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fedlearn

MAIN = "config.yaml"

REFUSED = "refused"
"""Key of a file that only says why there is no such choice."""


@dataclass(frozen=True)
class Choice:
    """One option of a group.

    Attributes:
        group: E.g. ``"continual"``.
        name: E.g. ``"replay"``.
        description: What the file's first comment says.
    """

    group: str
    name: str
    description: str


@dataclass(frozen=True)
class Key:
    """One key of config.yaml that belongs to no group.

    Attributes:
        name: Dotted, e.g. ``"local.epochs"``.
        default: As it stands in the file.
        meaning: The comment beside it.
    """

    name: str
    default: str
    meaning: str


def conf_dir() -> Path:
    """Return the directory of config.yaml, absolute: the wheel's copy or the source tree's.

    Raises:
        FileNotFoundError: Neither is there: the installation is broken.
    """
    package = Path(fedlearn.__file__).resolve().parent
    for directory in (package / "conf", package.parent / "conf"):
        if (directory / MAIN).is_file():
            return directory
    raise FileNotFoundError(f"{MAIN} is neither in {package}/conf nor in {package.parent}/conf")


def find_choices(extra: Sequence[Path] = ()) -> dict[str, list[Choice]]:
    """Return every group's choices, both sorted by name.

    Files named ``_*`` are shared bases, and those that hold `REFUSED` refusals.

    Args:
        extra: Further configuration directories (``--config-dir``). They add choices; ours win
            where a group has two of the same name, as they do in Hydra.
    """
    found: dict[tuple[str, str], Choice] = {}
    for directory in (conf_dir(), *extra):
        for path in sorted(directory.glob("*/*.yaml")):
            key = (path.parent.name, path.stem)
            is_choice = not path.stem.startswith("_") and not _is_refusal(path)
            if is_choice and key not in found:
                found[key] = Choice(*key, describe(path))
    groups: dict[str, list[Choice]] = {}
    for key in sorted(found):
        groups.setdefault(key[0], []).append(found[key])
    return groups


def _is_refusal(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8").splitlines()
    return any(line.startswith(f"{REFUSED}:") for line in lines)


def describe(path: Path) -> str:
    """Return what a file says about itself: its first comment, after any ``# @package`` line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# @"):
            return line.removeprefix("#").strip() if line.startswith("#") else ""
    return ""


_ENTRY = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#(?P<meaning>.*))?")
_DEFAULT = re.compile(r" *- (?P<group>[a-z]\w*): *(?P<choice>\w+)")


def default_choices() -> dict[str, str]:
    """Return each group's choice in config.yaml, in its order; ``"null"`` for none."""
    lines = (conf_dir() / MAIN).read_text(encoding="utf-8").splitlines()
    found = [match for line in lines if (match := _DEFAULT.match(line))]
    return {match["group"]: match["choice"] for match in found}


def keys() -> list[Key]:
    """Return the documented keys of config.yaml, in its order: those with a comment beside them."""
    found: list[Key] = []
    parents: list[tuple[int, str]] = []
    for line in (conf_dir() / MAIN).read_text(encoding="utf-8").splitlines():
        match = _ENTRY.fullmatch(line)
        if match is None:
            continue
        indent = len(match["indent"])
        parents = [each for each in parents if each[0] < indent]
        name = ".".join([*(parent for _, parent in parents), match["key"]])
        if match["meaning"]:
            found.append(Key(name, match["value"].strip(), match["meaning"].strip()))
        parents.append((indent, match["key"]))
    return found
