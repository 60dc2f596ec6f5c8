"""The small convolutional network that federated learning papers train on MNIST and CIFAR."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["none", "batch", "group"]

GROUP_SIZE = 8
"""Channels that group normalisation treats together; a width it does not divide is one group."""


class SmallCNN(nn.Module):
    """Blocks of convolution, normalisation, ReLU and 2x2 max pooling; one hidden layer; a head.

    ``features`` maps images (batch, C, H, W) to (batch, hidden_size), ``classifier`` those to
    logits (batch, num_classes). With ``kernel_size=5, hidden_size=512`` on 1x28x28 inputs it is the
    1 663 370-parameter CNN of McMahan et al. (AISTATS 2017).
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        widths: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        hidden_size: int = 128,
        norm: Norm = "none",
    ) -> None:
        """Build the model with PyTorch's default initialisation.

        Args:
            input_shape: (C, H, W) of one image.
            num_classes: Outputs, at least 1.
            widths: Channels of each block; every block halves height and width.
            kernel_size: Side of the convolutions, odd, so that they keep height and width.
            hidden_size: Units of the hidden layer, at least 1.
            norm: Follows each convolution. ``batch`` has running statistics, which are buffers and
                suffer when clients' data differ; ``group`` has none.

        Raises:
            ValueError: An argument is out of its range, or the images are too small for the blocks.
        """
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(
                f"model=cnn: needs images (channels, height, width), not {_shown(input_shape)}"
            )
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        if not widths or any(width < 1 for width in widths):
            raise ValueError(
                f"model.widths={list(widths)}: needs at least one, and each at least 1"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"model.kernel_size={kernel_size}: must be odd and at least 1")
        if hidden_size < 1:
            raise ValueError(f"model.hidden_size={hidden_size}: must be at least 1")
        channels, height, width = input_shape
        most = min(height, width).bit_length() - 1
        if len(widths) > most:
            raise ValueError(
                f"model.widths={list(widths)}: {len(widths)} blocks halve {height}x{width} images "
                f"to nothing; at most {most}"
            )
        blocks: list[nn.Module] = []
        for width_in, width_out in zip([channels, *widths], widths, strict=False):
            blocks += [
                nn.Conv2d(width_in, width_out, kernel_size, padding=kernel_size // 2),
                *_normalisation(norm, width_out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        scale = 2 ** len(widths)
        flat = widths[-1] * (height // scale) * (width // scale)
        self.features = nn.Sequential(
            *blocks, nn.Flatten(), nn.Linear(flat, hidden_size), nn.ReLU()
        )
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) of images x (batch, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _normalisation(norm: Norm, width: int) -> list[nn.Module]:
    if norm == "none":
        return []
    if norm == "batch":
        return [nn.BatchNorm2d(width)]
    if norm == "group":
        return [nn.GroupNorm(width // GROUP_SIZE if width % GROUP_SIZE == 0 else 1, width)]
    raise ValueError(f"model.norm={norm}: must be one of none, batch, group")


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
