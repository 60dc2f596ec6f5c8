"""Redaction: nothing secret leaves in a run's files, be it known by its name or by its value."""

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

SHORTEST = 8
"""Values of environment variables shorter than this are too common to be searched for."""

_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_ALWAYS = re.compile(r"secret|passw|credential", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"([\w.+~@/-]*(?:key|token|secret|passw|credential)[\w.-]*=)([^\s&]+)", re.IGNORECASE
)
_USER_INFO = re.compile(r"://[^/\s@]+@")


def redact(value: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Return JSON-like `value` with every secret in it replaced by ``[redacted]``.

    Secret is what stands under a name with *key*, *token*, *secret*, *password* or *credential* in
    it (numbers only under the last three: ``num_tokens: 512`` stays), what follows such a name and
    ``=`` in a text, the user part of a URL, and the value of any environment variable with such a
    name. Mappings become dicts and sequences lists; `value` itself is not changed.

    Args:
        value: Mappings, sequences and scalars.
        environment: The environment variables.
    """
    secrets = sorted(
        (
            text
            for name, text in environment.items()
            if _NAME.search(name) and len(text) >= SHORTEST
        ),
        key=len,
        reverse=True,  # a secret that contains another one goes first
    )
    return _redact(value, secrets)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: REDACTED if _is_secret(str(key), each) else _redact(each, secrets)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redact(each, secrets) for each in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
        return _USER_INFO.sub(f"://{REDACTED}@", _ASSIGNMENT.sub(rf"\1{REDACTED}", value))
    return value


def _is_secret(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or not _NAME.search(name):
        return False
    return not isinstance(value, int | float) or _ALWAYS.search(name) is not None
