"""Which models are chains: their layers in order, or why they are not a chain."""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from strategies.continual.functional.chain_images import (
    AveragePool,
    Convolution,
    GlobalAverage,
    GroupNorm,
    MaxPool,
    Pair,
)
from strategies.continual.functional.chain_layers import (
    GELU,
    Activation,
    Flatten,
    Layer,
    LeakyReLU,
    Linear,
    ReLU,
    Sigmoid,
    Tanh,
)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    return nn.Dropout(p if training else 0.0, inplace)


_CALLS: dict[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys((torch.relu, F.relu, "relu"), nn.ReLU),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    F.leaky_relu: nn.LeakyReLU,
    F.gelu: nn.GELU,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.dropout: _dropout,
}
"""Functions and methods of tensors, by the layer that does the same with the same arguments."""


def layers_of(model: nn.Module) -> list[Layer] | str:
    """Return the layers that `model` runs one after another, or in a line why it is not like that.

    The model is traced in the mode in which it is; nothing of it is modified.
    """
    for path, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{path or 'the model'} ({type(module).__name__}) has hooks"
    modules = _modules(model)
    if isinstance(modules, str):
        return modules
    layers: list[Layer] = []
    for path, module in modules:
        layer = _layer(path, module)
        if isinstance(layer, str):
            return f"{path} ({type(module).__name__}) {layer}"
        if layer is not None:
            layers.append(layer)
    return _tuned(layers)


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]] | str:
    """Return the paths and modules that run one after another, or why there is more to it."""
    takes = list(inspect.signature(model.forward).parameters)
    if len(takes) != 1:  # tracing would take another one for given
        return f"its forward pass takes {', '.join(takes)}"
    try:
        nodes = list(fx.Tracer().trace(model).nodes)
    except Exception as error:  # whatever a forward method that is not meant for it raises
        return f"its forward pass cannot be traced: {error}".splitlines()[0]
    found: list[tuple[str, nn.Module]] = []
    used: set[int] = set()
    last = nodes[0]  # the input
    for node in nodes[1:]:
        if node.all_input_nodes != [last] or (node.args and node.args[0] is not last):
            return f"its forward pass is not one layer after another: at {node.name}"
        if node.op == "output":
            break
        last = node
        if node.op == "call_module":
            path, module = str(node.target), model.get_submodule(str(node.target))
        elif node.target in _CALLS:
            path = node.name
            try:
                module = _CALLS[node.target](*node.args[1:], **node.kwargs)
            except TypeError as error:
                return f"{path}: {error}"
        else:
            return f"{node.name} is a call that chains do not have"
        own = {id(each) for each in module.parameters()}
        if own & used:
            return f"{path} ({type(module).__name__}) is used more than once"
        used |= own
        found.append((path, module))
    return found


def _layer(path: str, module: nn.Module) -> Layer | str | None:
    """Return a module as a layer, None where it does nothing, or why it cannot be one."""
    if not type(module).__module__.startswith("torch.nn.modules."):
        return "is not a layer of torch.nn"  # a subclass may do more than its parent
    names = {name: f"{path}.{name}" for name, _ in module.named_parameters()}
    weight, bias = names.get("weight"), names.get("bias")
    trained = tuple(names[name] for name, each in module.named_parameters() if each.requires_grad)
    match module:
        case nn.Linear():
            return Linear(names["weight"], bias, trained)
        case nn.Conv2d():
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                return f"pads by {module.padding_mode}, {module.padding}"
            return Convolution(
                names["weight"],
                bias,
                _pair(module.stride),
                _pair(module.padding),
                _pair(module.dilation),
                module.groups,
                trained,
            )
        case nn.GroupNorm():
            return GroupNorm(weight, bias, module.num_groups, module.eps, trained)
        case nn.MaxPool2d() | nn.AvgPool2d() | nn.AdaptiveAvgPool2d():
            return _pool(module)
        case nn.Flatten():
            return (
                Flatten() if (module.start_dim, module.end_dim) == (1, -1) else "keeps other axes"
            )
        case nn.Identity() | nn.Dropout(p=0) | nn.Dropout2d(p=0):
            return None
        case nn.Dropout() | nn.Dropout2d():
            return "draws random numbers; p=0 would not"
    return _activation(module) or "is not supported"


def _activation(module: nn.Module) -> Activation | None:
    """Return an activation as a layer; None for none."""
    match module:
        case nn.ReLU():
            return ReLU()
        case nn.LeakyReLU() if module.negative_slope >= 0:
            return LeakyReLU(leak=module.negative_slope)
        case nn.Tanh():
            return Tanh()
        case nn.Sigmoid():
            return Sigmoid()
        case nn.GELU():
            return GELU(approximate=module.approximate)
    return None


def _pool(module: nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d) -> Layer | str:
    """Return a pooling as a layer, or why it cannot be one."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return GlobalAverage() if module.output_size in (1, (1, 1)) else "leaves more than 1x1"
    if module.ceil_mode:
        return "has ceil_mode"
    kernel, stride, padding = (
        _pair(each) for each in (module.kernel_size, module.stride, module.padding)
    )
    if isinstance(module, nn.AvgPool2d):
        counts, divisor = module.count_include_pad, module.divisor_override
        return AveragePool((kernel, stride, padding, False, counts, divisor))
    if module.return_indices:
        return "returns indices"
    return MaxPool((kernel, stride, padding, _pair(module.dilation)))


def _pair(size: int | tuple[int, ...]) -> Pair:
    return [size, size] if isinstance(size, int) else list(size)


def _tuned(layers: list[Layer]) -> list[Layer]:
    """Return the same function with less memory to write."""
    tuned = list(layers)
    for at, (one, other) in enumerate(pairwise(layers)):
        if isinstance(one, ReLU) and isinstance(other, MaxPool):
            tuned[at : at + 2] = other, one  # the same maxima, of fewer numbers to rectify
    for at, layer in enumerate(tuned):
        if isinstance(layer, Activation):
            layer.on_input = _fresh(tuned[:at][::-1])
            layer.on_slope = any(not isinstance(above, Flatten) for above in tuned[at + 1 :])
    return tuned


def _fresh(below: list[Layer]) -> bool:
    """Return whether a layer may overwrite its input, given the layers below, the nearest first."""
    for layer in below:
        if not isinstance(layer, Flatten):  # whose output is a view
            return layer.fresh
    return False
