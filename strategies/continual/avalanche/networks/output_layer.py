"""The layer that makes logits of features, found and taken off."""

from torch import nn


def output_layer(model: nn.Module, num_classes: int, continual: str) -> str:
    """Return the name of the model's last linear layer, which must have `num_classes` outputs.

    Args:
        model: Its modules stand in the order in which they run, as far as the last one goes.
        num_classes: C.
        continual: Who asks, for the error.

    Raises:
        ValueError: The model does not end in such a layer.
    """
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    last: str | None = next(reversed(linear), None)
    if last is None or linear[last].out_features != num_classes:
        raise ValueError(
            f"continual={continual}: needs a model whose last linear layer has the {num_classes} "
            f"classes for outputs, and {type(model).__name__} has none"
        )
    return last


def split_off(model: nn.Module, num_classes: int, continual: str) -> tuple[nn.Module, nn.Linear]:
    """Return `model` without its output layer, and that layer.

    Args:
        model: Changed in place, unless it is the layer itself.
        num_classes: C.
        continual: Who asks, for the error.

    Returns:
        The backbone, which outputs features (batch, d), and the layer, which reads them.

    Raises:
        ValueError: See `output_layer`.
    """
    name = output_layer(model, num_classes, continual)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    if not name:
        return nn.Identity(), layer
    model.set_submodule(name, nn.Identity())
    return model, layer
