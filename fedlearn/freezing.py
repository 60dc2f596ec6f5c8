"""Freezing: parameters that nobody trains, named by patterns."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Make the parameters of `model` whose names match any of `patterns` untrainable, in place.

    A normalisation layer all of whose parameters are frozen normalises with the statistics that it
    has and leaves them as they are, in training as in evaluation: what is fixed is the function.

    Args:
        model: Its ``named_parameters`` give the names, e.g. ``"features.0.weight"``.
        patterns: In the notation of `fnmatch`: ``*`` stands for anything, dots included.

    Raises:
        ValueError: A pattern matches no parameter, or together they match all of them.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            close = difflib.get_close_matches(pattern, parameters, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"local.freeze={pattern}: matches no parameter; {hint}"
                f"parameters: {', '.join(parameters)}"
            )
    matched = [
        name for name in parameters if any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if parameters and len(matched) == len(parameters):
        raise ValueError(
            f"local.freeze=[{','.join(patterns)}]: matches every parameter; nothing would train"
        )
    for name in matched:
        parameters[name].requires_grad_(False)
    for layer in model.modules():
        own = list(layer.parameters(recurse=False)) if isinstance(layer, _NormBase) else []
        if own and not any(parameter.requires_grad for parameter in own):
            # A hook, because whoever calls train() on the model would undo a mere eval().
            layer.register_forward_pre_hook(_evaluate)


def _evaluate(layer: nn.Module, _inputs: Any) -> None:
    layer.training = False
