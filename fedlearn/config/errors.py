"""What a user gets told: one line that names the key, the value, and the way out."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """The configuration cannot run; the message is one line for the user."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` most like `name`, or None where none is close.

    Dotted names are compared by their last part, first among their siblings and then everywhere:
    ``lr`` is meant for ``optimizer.lr``.
    """
    known = list(dict.fromkeys(names))
    parent, _, leaf = name.rpartition(".")
    siblings = {
        last: each for each in known for up, _, last in [each.rpartition(".")] if up == parent
    }
    if close := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6):
        return siblings[close[0]]
    alike = [each for each in known if _likeness(leaf, each.rpartition(".")[2]) >= 0.75]
    return max(alike, key=lambda each: _likeness(name, each), default=None)


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the nearest of `names`, or nothing."""
    close = nearest(name, names)
    return f"; did you mean {close}?" if close else ""


def among(name: str, names: Iterable[str], what: str = "choices") -> str:
    """Return the end of a message about an unknown name: the nearest one, then all of them."""
    known = list(dict.fromkeys(names))
    return f"{did_you_mean(name, known) or ';'} {what}: {', '.join(known) or 'none'}"


def one_line(text: object) -> str:
    """Return the message with every run of white space as one space."""
    return " ".join(str(text).split())


def shown(value: object) -> str:
    """Return `value` as the user would have typed it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
