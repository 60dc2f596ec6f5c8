"""LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998)."""

from typing import Literal

from torch import Tensor, nn

SMALLEST = 12
"""Least height and width: two 5x5 convolutions and two poolings leave one pixel of it."""


class LeNet5(nn.Module):
    """Two 5x5 convolutions with 2x2 pooling, layers of 120 and 84 units, and a linear head.

    ``features`` maps images (batch, C, H, W) to (batch, 84), ``classifier`` those to logits
    (batch, num_classes). 61 706 parameters on 1x28x28 images with 10 classes.

    Deviations from the paper, all common today: pooling has no trainable coefficients, the second
    convolution sees all channels of the first, the head is linear instead of radial basis
    functions, and the default activation and pooling are ReLU and maximum (``tanh`` and ``average``
    are the paper's). The paper pads 28x28 digits to 32x32; so does this for every image smaller
    than 32, and larger ones only widen the first fully connected layer.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        activation: Literal["relu", "tanh"] = "relu",
        pooling: Literal["max", "average"] = "max",
    ) -> None:
        """Build the model with PyTorch's default initialisation.

        Args:
            input_shape: (C, H, W) of one image, H and W at least 12.
            num_classes: Outputs, at least 1.
            activation: Follows every layer but the head.
            pooling: Halves height and width after each convolution.

        Raises:
            ValueError: The images are too small, or an argument is unknown.
        """
        super().__init__()
        if len(input_shape) != 3:
            shown = "x".join(str(size) for size in input_shape)
            raise ValueError(f"model=lenet: needs images (channels, height, width), not {shown}")
        channels, height, width = input_shape
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"model=lenet: {height}x{width} images are too small (at least "
                f"{SMALLEST}x{SMALLEST}); model=cnn takes smaller ones"
            )
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        activations = {"relu": nn.ReLU, "tanh": nn.Tanh}
        if activation not in activations:
            raise ValueError(f"model.activation={activation}: must be one of relu, tanh")
        poolings = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
        if pooling not in poolings:
            raise ValueError(f"model.pooling={pooling}: must be one of max, average")
        act, pool = activations[activation], poolings[pooling]
        padding = 2 if min(height, width) < 32 else 0
        flat = 16 * _side(height, padding) * _side(width, padding)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=padding),
            act(),
            pool(2),
            nn.Conv2d(6, 16, 5),
            act(),
            pool(2),
            nn.Flatten(),
            nn.Linear(flat, 120),
            act(),
            nn.Linear(120, 84),
            act(),
        )
        self.classifier = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) of images x (batch, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _side(size: int, padding: int) -> int:
    """Return what two convolutions and two poolings leave of a height or width."""
    return ((size + 2 * padding - 4) // 2 - 4) // 2
