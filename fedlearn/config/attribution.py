"""Attribution: a part's complaint becomes one line that names the key it is about."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException

from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError, one_line, shown


@contextmanager
def blaming(group: str, composed: Composed) -> Iterator[None]:
    """Turn a part's ValueError or OSError into a `ConfigError` that names the group's key.

    Anything else is a bug, and passes as it is.
    """
    try:
        yield
    except ConfigError:
        raise
    except InstantiationException as error:
        if not isinstance(error.__cause__, ValueError | OSError):
            raise
        raise ConfigError(attributed(str(error.__cause__), group, composed)) from error
    except (ValueError, OSError) as error:
        raise ConfigError(attributed(str(error), group, composed)) from error


def attributed(message: str, group: str, composed: Composed, guess: bool = True) -> str:
    """Return `message` as one line that starts with the key it is about.

    Our own parts name the key (``partition.alpha=-1: ...``), and pass as they are. Others name a
    parameter (```beta` must be ...``) or nothing; then the line starts with the parameter and its
    value, or with the group's choice.

    Args:
        message: What the part says.
        group: The part's.
        composed: The configuration.
        guess: Whether a parameter that the message merely mentions is taken for its subject.
    """
    message = one_line(message)
    node = composed.tree[group]
    first = re.match(r"[\w.]+(?=[=: ])", message)
    if first is not None:
        root, _, rest = first[0].partition(".")
        if root in composed.tree and (rest or message[first.end()] == "="):
            return message
        if root in node and message[first.end()] == "=":
            return f"{group}.{message}"
    if guess and (mentioned := _mentioned(message, node)):
        return f"{group}.{mentioned}={shown(node[mentioned])}: {message}"
    return f"{group}={composed.choices.get(group, 'null')}: {message}"


def _mentioned(message: str, node: Mapping[str, Any]) -> str | None:
    """Return the one parameter of `node` that `message` is about, if that is clear.

    It is the only one named in the message, or the only one whose value stands at its end
    (``Invalid learning rate: -1``).
    """
    keys = [key for key in node if not key.startswith("_")]
    named = [key for key in keys if re.search(rf"\b{re.escape(key)}\b", message)]
    if len(named) == 1:
        return named[0]
    ending = [key for key in keys if re.search(rf": {re.escape(str(node[key]))}$", message)]
    return ending[0] if len(ending) == 1 else None
