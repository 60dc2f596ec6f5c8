"""Multi-layer perceptron."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn

Activation = Literal["relu", "leaky_relu", "gelu", "tanh"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
    """Flattens its input, then fully connected layers and a linear head.

    ``features`` maps inputs (batch, *input_shape) to (batch, last hidden size), ``classifier``
    those to logits (batch, num_classes). ``hidden_sizes=()`` is multinomial logistic regression.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        hidden_sizes: Sequence[int] = (100,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        """Build the model with PyTorch's default initialisation.

        Args:
            input_shape: Shape of one input, without the batch.
            num_classes: Outputs, at least 1.
            hidden_sizes: Units of each hidden layer, each at least 1.
            activation: Follows each hidden layer.
            dropout: Share of each hidden layer's units that are dropped in training, in [0, 1).
                The draws come from PyTorch's global generator.
            batch_norm: Batch normalisation before each activation. Its running statistics are
                buffers, and it needs at least two samples a batch in training.

        Raises:
            ValueError: An argument is out of its range.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        if any(size < 1 for size in hidden_sizes):
            raise ValueError(
                f"model.hidden_sizes={list(hidden_sizes)}: every size must be at least 1"
            )
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"model.activation={activation}: must be one of {', '.join(_ACTIVATIONS)}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout}: must be in [0, 1)")
        sizes = [prod(input_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size_in, size_out in pairwise(sizes):
            layers.append(nn.Linear(size_in, size_out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(size_out))
            layers.append(_ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) of inputs x (batch, *input_shape)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
