"""ResNet-18 (He et al., Deep residual learning for image recognition, CVPR 2016).

The network is torchvision's; what is added is what federated learning needs: a stem for small
images, and group normalisation, which keeps no statistics of any one client's data.
"""

from functools import partial
from typing import Literal

from torch import nn


def resnet18(
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    stem: Literal["cifar", "imagenet"] = "cifar",
    norm: Literal["batch", "group"] = "group",
    num_groups: int = 32,
) -> nn.Module:
    """Return a ResNet-18 that maps images (batch, C, H, W) to logits (batch, num_classes).

    Args:
        input_shape: (C, H, W) of one image.
        num_classes: Outputs, at least 1.
        stem: ``imagenet`` is the paper's 7x7 convolution of stride 2 and 3x3 max pooling, for
            large images; ``cifar`` one 3x3 convolution of stride 1, for small ones.
        norm: ``batch`` is the paper's. ``group`` (Wu & He, ECCV 2018) replaces it as Hsieh et al.
            (ICML 2020) propose where clients' data differ; it has no buffers.
        num_groups: Groups of channels under ``norm: group``; divides 64. 32 is Wu & He's choice.

    Raises:
        ValueError: An argument is out of its range.
    """
    from torchvision.models.resnet import BasicBlock, ResNet

    if len(input_shape) != 3:
        shown = "x".join(str(size) for size in input_shape)
        raise ValueError(f"model=resnet18: needs images (channels, height, width), not {shown}")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: must be at least 1")
    if stem not in ("cifar", "imagenet"):
        raise ValueError(f"model.stem={stem}: must be one of cifar, imagenet")
    if norm not in ("batch", "group"):
        raise ValueError(f"model.norm={norm}: must be one of batch, group")
    if num_groups < 1 or 64 % num_groups:
        raise ValueError(f"model.num_groups={num_groups}: must divide 64, the fewest channels")
    norm_layer = nn.BatchNorm2d if norm == "batch" else partial(nn.GroupNorm, num_groups)
    model: nn.Module = ResNet(
        BasicBlock, [2, 2, 2, 2], num_classes=num_classes, norm_layer=norm_layer
    )
    channels = input_shape[0]
    if stem == "cifar":
        model.conv1 = _convolution(channels, kernel_size=3, stride=1)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = _convolution(channels, kernel_size=7, stride=2)
    return model


def _convolution(channels: int, kernel_size: int, stride: int) -> nn.Conv2d:
    """Return a first convolution, initialised as torchvision initialises all of a ResNet's."""
    layer = nn.Conv2d(channels, 64, kernel_size, stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
