"""Arrivals: a folder that data come to part by part, while runs go on."""

import re
from pathlib import Path

_PART = re.compile(r"(0|[1-9][0-9]*)(\.[a-z]+)?", re.ASCII)


def parts_of(place: Path) -> list[Path]:
    """Return what has come to a folder: ``0.npz``, ``1.npz``, ... or folders ``0``, ``1``, ...

    They count up to the first number that is missing. Whoever adds one gives it its name once it is
    all there (``mv``). None are no such folder, or no folder.
    """
    if not place.is_dir():
        return []
    named = {each.stem: each for each in sorted(place.iterdir()) if _PART.fullmatch(each.name)}
    parts: list[Path] = []
    while (part := named.get(str(len(parts)))) is not None:
        parts.append(part)
    return parts
