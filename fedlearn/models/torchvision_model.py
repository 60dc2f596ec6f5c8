"""Any classification architecture of torchvision, by its name, untrained."""

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def torchvision_model(
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    architecture: str = "mobilenet_v3_small",
) -> nn.Module:
    """Return a torchvision model that maps images (batch, C, H, W) to logits (batch, num_classes).

    Weights are drawn as torchvision draws them; none are downloaded. Auxiliary heads (GoogLeNet,
    Inception) are left out. Where the images have another number of channels than three, the first
    convolution is replaced by one that fits, with PyTorch's default initialisation. Vision
    transformers and MaxViT are built for the images' size.

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: Outputs, at least 1.
        architecture: A name from ``torchvision.models.list_models(module=torchvision.models)``,
            e.g. ``resnet18``, ``densenet121``, ``vit_b_16``.

    Raises:
        ValueError: The name is unknown, or the architecture cannot take such images.
    """
    from torchvision import models

    names = models.list_models(module=models)
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]}?" if close else f"; choices: {', '.join(names)}"
        raise ValueError(f"model.architecture={architecture}: unknown to torchvision{hint}")
    if len(input_shape) != 3:
        raise ValueError(
            f"model.architecture={architecture}: needs images (channels, height, width), "
            f"not {_shown(input_shape)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: must be at least 1")
    try:
        model: nn.Module = models.get_model(
            architecture, num_classes=num_classes, **_options(architecture, input_shape)
        )
        if input_shape[0] != 3:
            _replace_first_convolution(model, input_shape[0])
        logits = _dry_run(model, input_shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"model.architecture={architecture}: cannot take {_shown(input_shape)} images: "
            f"{' '.join(str(error).split())}"
        ) from error
    if logits.shape != (2, num_classes):
        raise ValueError(
            f"model.architecture={architecture}: gives {tuple(logits.shape)} instead of one row of "
            f"{num_classes} logits an image"
        )
    return model


def _options(architecture: str, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the arguments that some architectures need to be plain classifiers of such images."""
    if architecture in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    _, height, width = input_shape
    if architecture.startswith("vit_"):
        if height != width:
            raise ValueError("it needs square images")
        return {"image_size": height}
    if architecture.startswith("maxvit"):
        return {"input_size": (height, width)}
    return {}


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _like(module, channels))
            return
    raise ValueError(f"no convolution of three channels to adapt to {channels}")


def _like(layer: nn.Conv2d, channels: int) -> nn.Conv2d:
    """Return a fresh convolution that differs from `layer` in its input channels only."""
    arguments = {
        name: getattr(layer, name)
        for name in inspect.signature(nn.Conv2d).parameters
        if name not in ("in_channels", "bias", "device", "dtype")
    }
    return nn.Conv2d(in_channels=channels, bias=layer.bias is not None, **arguments)


def _dry_run(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Return the shape-only logits of two images: no arithmetic is done, nothing is changed."""
    tensors = {
        name: tensor.to("meta")
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: Tensor = functional_call(
                model, tensors, (torch.empty(2, *input_shape, device="meta"),)
            )
    finally:
        model.train(was_training)
    return logits


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
