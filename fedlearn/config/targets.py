"""Checks of the nodes that name Python objects: ``_target_`` and its parameters.

A YAML file is its own schema: the keys it may hold are the parameters of its ``_target_``, their
types the annotations. So a new choice needs one Python file and one YAML file, and gets one-line
errors for nothing.
"""

import importlib
import inspect
import math
import types
import typing
from collections import abc
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlearn.config.errors import ConfigError, among, did_you_mean, one_line, shown
from fedlearn.config.interval import Interval

TARGET = "_target_"
LIMITS = "limits"
"""Key of a node that holds intervals of its other keys, for objects that check nothing."""

_HYDRA_KEYS = {TARGET, "_partial_", "_convert_", "_recursive_", "_args_"}


def check_node(path: str, node: Any, supplied: Collection[str], extra: Collection[str]) -> None:
    """Check that the object `node` describes can be built from it.

    Args:
        path: Where the node stands, e.g. ``"continual"``.
        node: The node, resolved to plain values.
        supplied: Parameters that fedlearn fills in itself.
        extra: Keys of the node that are not parameters.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    if not isinstance(node, Mapping) or TARGET not in node:
        raise ConfigError(f"{path}={shown(node)}: needs a {TARGET}, the object to build")
    target = locate(f"{path}.{TARGET}", str(node[TARGET]))
    limits = node.get(LIMITS) or {}
    if not isinstance(limits, Mapping):
        raise ConfigError(
            f"{path}.{LIMITS}={shown(limits)}: must be a mapping of keys to intervals"
        )
    given = {
        key: value
        for key, value in node.items()
        if key not in _HYDRA_KEYS and key not in extra and key != LIMITS
    }
    parameters, hints = _parameters(target)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    names = [
        name
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and name not in supplied
    ]
    for key, value in given.items():
        if key in supplied:
            raise ConfigError(f"{path}.{key}={shown(value)}: is filled in by fedlearn; remove it")
        if key not in names and not takes_any:
            raise ConfigError(
                f"{path}.{key}={shown(value)}: unknown key{among(key, names, 'keys')}"
            )
        _check_value(f"{path}.{key}", value, hints.get(key, Any))
        if key in limits:
            check_range(f"{path}.{key}", value, limits[key])
    for name in names:
        if given.get(name) == "???":
            raise ConfigError(f"{path}.{name}: is missing")
        if name not in given and parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{name}: is missing; {node[TARGET]} requires it")


def check_range(path: str, value: Any, interval: str) -> None:
    """Check that a number lies in `interval`; null passes.

    Raises:
        ConfigError: It does not, or `interval` is no interval.
    """
    try:
        bounds = Interval.parse(str(interval))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if value is not None and value not in bounds:
        raise ConfigError(f"{path}={shown(value)}: must be {bounds}")


def locate(path: str, dotted: str) -> Callable[..., Any]:
    """Return the object at `dotted`, e.g. ``"strategies.aggregation.fedavg.FedAvg"``.

    Raises:
        ConfigError: There is no such object; the message names the nearest that there is.
    """
    parts = dotted.split(".")
    found: Any = None
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue
            raise ConfigError(f"{path}={dotted}: cannot be imported: {one_line(error)}") from error
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{path}={dotted}: cannot be imported: {one_line(error)}") from error
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                inside = [each for each in _members(found) if not each.startswith("_")]
                hint = did_you_mean(attribute, inside)
                raise ConfigError(
                    f"{path}={dotted}: {getattr(found, '__name__', found)} has no {attribute}{hint}"
                )
            found = getattr(found, attribute)
        if not callable(found):
            raise ConfigError(f"{path}={dotted}: is not something that can be called")
        return typing.cast(Callable[..., Any], found)
    raise ConfigError(f"{path}={dotted}: there is no module {parts[0]}")


def _members(holder: Any) -> list[str]:
    """Return what can follow `holder` in a dotted name: attributes, and a package's modules."""
    files = [
        entry.stem
        for folder in getattr(holder, "__path__", [])
        for entry in Path(folder).iterdir()
        if entry.suffix == ".py" or (entry / "__init__.py").is_file()
    ]
    return [*files, *dir(holder)]


def _parameters(
    target: Callable[..., Any],
) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    """Return the target's parameters and their types, as far as either can be known."""
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # written in C: any key may be right
        return {"any": inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)}, {}
    annotated = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(annotated)
    except (NameError, TypeError):  # names that exist for type checkers only
        hints = {}
    return parameters, hints


def _check_value(path: str, value: Any, hint: Any) -> None:
    if isinstance(value, Mapping) and TARGET in value:
        check_node(path, value, supplied=_open_parameters(value), extra=())
        return
    expected = mismatch(value, hint)
    if expected is not None:
        raise ConfigError(f"{path}={shown(value)}: must be {expected}")


def _open_parameters(node: Mapping[str, Any]) -> Collection[str]:
    """Return the parameters that a nested ``_partial_`` node leaves to whoever calls it."""
    if not node.get("_partial_"):
        return ()
    parameters, _ = _parameters(locate(TARGET, str(node[TARGET])))
    return [name for name in parameters if name not in node]


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}
_SEQUENCES = (list, tuple, set, frozenset, abc.Sequence, abc.Collection, abc.Iterable)
_MAPPINGS = (dict, abc.Mapping)


def mismatch(value: Any, hint: Any) -> str | None:
    """Return what `value` should have been, in words, or None where it fits the type `hint`.

    Types that YAML cannot write (a callable, a tensor) fit everything: their values come from
    nodes with a ``_target_``, or from code.
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Annotated:
        return mismatch(value, arguments[0])
    if origin is typing.Literal:
        choices = [shown(each) for each in arguments]
        wrong = f"one of {', '.join(choices)}{did_you_mean(shown(value), choices)}"
        return None if value in arguments else wrong
    if origin in (typing.Union, types.UnionType):
        return _union_mismatch(value, arguments)
    if origin in _SEQUENCES:
        return _sequence_mismatch(value, origin, arguments)
    if origin in _MAPPINGS:
        return None if isinstance(value, Mapping) else "a mapping"
    return None if origin not in _WORDS or _is_a(value, origin) else _WORDS[origin]


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:
        return _is_a(value, int) or (isinstance(value, float) and math.isfinite(value))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if kind is Path else kind)


def _union_mismatch(value: Any, alternatives: Sequence[Any]) -> str | None:
    # a tensor beside a float excuses nothing: YAML can only have meant the float
    writable = [each for each in alternatives if _is_writable(each)]
    wrong = [mismatch(value, each) for each in writable]
    if not writable or None in wrong:
        return None
    return " or ".join(sorted(filter(None, wrong), key=lambda words: words == "null"))


def _is_writable(hint: Any) -> bool:
    """Whether YAML can write a value of this type."""
    origin = typing.get_origin(hint) or hint
    return (
        origin in _WORDS
        or origin in (*_SEQUENCES, *_MAPPINGS)
        or origin in (Any, typing.Literal, typing.Union, types.UnionType, typing.Annotated)
    )


def _sequence_mismatch(value: Any, kind: Any, arguments: Sequence[Any]) -> str | None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return "a list"
    hints = list(arguments[:1]) * len(value)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return f"a list of {len(arguments)}"
        hints = list(arguments)
    for each, hint in zip(value, hints, strict=False):
        if expected := mismatch(each, hint):
            return f"a list; {shown(each)} in it must be {expected}"
    return None
