"""The convolutional network of Adaptive Federated Optimization (Reddi et al., ICLR 2021)."""

from torch import Tensor, nn

SMALLEST = 6
"""Least height and width: two 3x3 convolutions and one pooling leave one pixel of it."""

HIDDEN_SIZE = 128


class ReddiCNN(nn.Module):
    """Two 3x3 convolutions of 32 and 64 channels, one 2x2 pooling, a layer of 128 units, a head.

    The network for EMNIST in the appendix of Reddi et al.; PyTorch's MNIST example has the same
    layers. ``features`` maps images (batch, C, H, W) to (batch, 128), ``classifier`` those to
    logits (batch, num_classes). 1 206 590 parameters on 1x28x28 images with 62 classes, 1 626 442
    on 3x32x32 images with 10.

    Deviation: without dropout unless asked for, like the other models here.
    """

    def __init__(
        self, *, input_shape: tuple[int, ...], num_classes: int, dropout: bool = False
    ) -> None:
        """Build the model with PyTorch's default initialisation.

        Args:
            input_shape: (C, H, W) of one image, H and W at least 6.
            num_classes: Outputs, at least 1.
            dropout: Whether a quarter of the pooled and half of the hidden units are dropped in
                training, as in the paper. The draws come from PyTorch's global generator.

        Raises:
            ValueError: The images are too small, or there is no class.
        """
        super().__init__()
        if len(input_shape) != 3:
            shown = "x".join(str(size) for size in input_shape)
            raise ValueError(
                f"model=reddi_cnn: needs images (channels, height, width), not {shown}"
            )
        channels, height, width = input_shape
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"model=reddi_cnn: {height}x{width} images are too small (at least "
                f"{SMALLEST}x{SMALLEST})"
            )
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        flat = 64 * ((height - 4) // 2) * ((width - 4) // 2)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            *([nn.Dropout(0.25)] if dropout else []),
            nn.Flatten(),
            nn.Linear(flat, HIDDEN_SIZE),
            nn.ReLU(),
            *([nn.Dropout(0.5)] if dropout else []),
        )
        self.classifier = nn.Linear(HIDDEN_SIZE, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) of images x (batch, C, H, W)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
