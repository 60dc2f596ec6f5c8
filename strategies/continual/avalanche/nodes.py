"""Objects that a YAML describes by ``_target_`` and arguments, made as often as they are needed.

Hydra makes each object once. What an Avalanche plugin remembers must not pass from one client to
the next, so plugins are made anew for every turn, with all that stands inside their nodes.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]

TARGET, PARTIAL = "_target_", "_partial_"


class NodeError(ValueError):
    """A node cannot be made; the message begins with where it stands."""


def is_node(value: Any) -> bool:
    """Whether `value` describes an object."""
    return isinstance(value, Mapping) and TARGET in value


def make(node: Node, key: str) -> Any:
    """Return a new object as `node` describes it, or a partial one with ``_partial_: true``.

    Raises:
        NodeError: It cannot be made; the message begins with `key`, where the node stands.
    """
    target = locate(node, key)
    try:
        made = functools.partial(target, **arguments(node, key))
        return made if node.get(PARTIAL) else made()
    except (TypeError, ValueError, AssertionError) as error:
        raise NodeError(f"{key}.{TARGET}={node[TARGET]}: cannot be made: {_line(error)}") from error


def arguments(node: Node, key: str) -> dict[str, Any]:
    """Return the arguments in `node`, with objects in place of the nodes among them.

    Raises:
        NodeError: One cannot be made.
    """
    return {
        name: _filled(value, f"{key}.{name}")
        for name, value in node.items()
        if name not in (TARGET, PARTIAL)
    }


def _filled(value: Any, key: str) -> Any:
    if is_node(value):
        return make(value, key)
    if isinstance(value, Mapping):
        return {name: _filled(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_filled(item, f"{key}.{place}") for place, item in enumerate(value)]
    return value


def check_names(node: Node, key: str, supplied: Collection[str] = ()) -> None:
    """Check that the target of `node` has parameters of the names given.

    Args:
        node: Describes a class or a function.
        key: Where it stands.
        supplied: Parameters that are filled in by whoever makes the object.

    Raises:
        NodeError: A name is unknown, supplied, or missing.
    """
    known, needed = _parameters(locate(node, key))
    given = [name for name in node if name not in (TARGET, PARTIAL)]
    for name in given:
        if name in supplied:
            raise NodeError(f"{key}.{name}={node[name]}: is filled in by fedlearn; remove it")
        if known is not None and name not in known:
            names = [each for each in known if each not in supplied]
            hint = nearest(name, names) or f"; keys: {', '.join(names) or 'none'}"
            raise NodeError(f"{key}.{name}={node[name]}: unknown key{hint}")
    for name in needed:
        if name not in given and name not in supplied and not node.get(PARTIAL):
            raise NodeError(f"{key}.{name}: is missing; {node[TARGET]} requires it")


def locate(node: Node, key: str) -> Callable[..., Any]:
    """Return what the ``_target_`` of `node` names.

    Raises:
        NodeError: There is nothing of that name, or it cannot be called.
    """
    dotted = node[TARGET]
    module, _, name = str(dotted).rpartition(".")
    try:
        found = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise NodeError(f"{key}.{TARGET}={dotted}: {_line(error)}") from error
    target: Callable[..., Any] | None = getattr(found, name, None)
    if not callable(target):
        hint = nearest(name, vars(found))
        raise NodeError(f"{key}.{TARGET}={dotted}: {module} has no {name}{hint}")
    return target


def nearest(name: str, names: Collection[str]) -> str:
    """Return ``"; did you mean X?"`` for the one of `names` most like `name`, or nothing."""
    close = difflib.get_close_matches(name, [each for each in names if each[:1] != "_"], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _parameters(target: Callable[..., Any]) -> tuple[list[str] | None, list[str]]:
    """Return the names of all parameters, or None where any may be right, and of the required.

    What ``**kwargs`` take in is what the constructors of the base classes name.
    """
    known: list[str] = []
    needed: list[str] = []
    for depth, signature in enumerate(_signatures(target)):
        parameters = signature.parameters.values()
        for each in parameters:
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                known.append(each.name)
                if not depth and each.default is each.empty:
                    needed.append(each.name)
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            break
    names = [name for name in dict.fromkeys(known) if name != "self"]
    return names or None, needed


def _signatures(target: Callable[..., Any]) -> Iterator[inspect.Signature]:
    """Yield the signature of `target`, then those of its base classes' constructors, if known."""
    bases = target.__mro__[1:-1] if inspect.isclass(target) else ()
    inherited = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    for each in (target, *inherited):
        try:
            yield inspect.signature(each)
        except (TypeError, ValueError):  # written in C
            return


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
