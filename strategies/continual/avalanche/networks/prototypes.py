"""Models that predict with statistics of each class's features, which federate exactly.

The model that the user chose trains as it is. In evaluation mode its last linear layer is left out,
and what it reads, the features, is compared with statistics of each class.

Those statistics are sums over samples: how many, of their features, of the features' products. A
client sends its sums divided by the number of samples that it trained on, as buffers. The server
weighs buffers by that very number, so the global buffers are the sums over the whole cohort divided
by the cohort's samples: every mean and covariance drawn from them is that of the pooled data.

Of a class that it has nothing of, a client passes on the mean that it received with the weight
`FAINT`: it counts only where nobody in the cohort knows better, and does not fade.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.networks.output_layer import output_layer

Statistics = dict[str, Tensor]
"""Sums over samples, by the name of the buffer that they belong to, float64."""

FAINT = 2.0**-30
"""A power of two, so that passing a mean on any number of times leaves it as it is, to the bit."""
UNKNOWN = -1e3
"""The score of a class without a prototype: below all known ones, above `fedlearn.heads.HIDDEN`."""
BATCH = 2048
"""Samples a forward pass when statistics are taken."""


class Prototypes(nn.Module):
    """A model that trains through its own head and predicts by the nearest class mean.

    In training mode the output is the model's own. In evaluation mode it is minus the Euclidean
    distance between features and class means, (batch, C) float32.

    Attributes:
        of_each_class: Names of the buffers that have a row for each class.
        model: The model that the user chose.
        counts: (C,) float64, buffer: samples of each class, over the number of samples.
        sums: (C, d) float64, buffer: sum of each class's features, over the number of samples.
    """

    of_each_class: tuple[str, ...] = ("counts", "sums")
    counts: Tensor
    sums: Tensor

    def __init__(
        self, continual: str, model: nn.Module, training: LocalTraining, normalize: bool = True
    ) -> None:
        """Wrap `model`.

        Args:
            continual: Whose model it is, for errors.
            model: Ends in a linear layer of C outputs that reads features (batch, d).
            training: Tells C.
            normalize: Whether features, and class means, are scaled to length 1.

        Raises:
            ValueError: The model has no such layer.
        """
        super().__init__()
        self._head = output_layer(model, training.num_classes, continual)
        self.model, self.continual, self.normalize = model, continual, normalize
        self.head.register_forward_pre_hook(self._notice)
        self._noticed: Tensor | None = None
        classes, width = training.num_classes, self.head.in_features
        counts = torch.zeros(classes, dtype=torch.float64, device=self.head.weight.device)
        self.register_buffer("counts", counts)
        self.register_buffer("sums", counts.new_zeros(classes, width))

    @property
    def head(self) -> nn.Linear:
        """The model's last linear layer."""
        return cast(nn.Linear, self.model.get_submodule(self._head))

    def _notice(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._noticed = inputs[0]

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's own output, (batch, C), and the features (batch, d) behind it.

        Raises:
            ValueError: The model does not end in its last linear layer.
        """
        logits, features = self.model(x), self._noticed
        self._noticed = None
        if features is None or features.dim() != 2:
            raise ValueError(
                f"continual={self.continual}: needs a model whose last linear layer reads one "
                f"vector of features a sample, and {type(self.model).__name__}'s does not"
            )
        return logits, features.float()

    def logits_with(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Return the model's own output, (batch, C), as it would be with other `weights`."""
        logits: Tensor = functional_call(self.model, weights, (x,))
        self._noticed = None
        return logits.float()

    def features(self, x: Tensor) -> Tensor:
        """Return the features (batch, d), float32, of x (batch, *input_shape)."""
        return self.logits_and_features(x)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, C): the model's own output in training mode, in evaluation mode scores."""
        logits, features = self.logits_and_features(x)
        if self.training:
            return logits
        scores = self.scores(self.embed(features).double()).float()
        return scores.masked_fill(self.counts == 0, UNKNOWN)

    def embed(self, features: Tensor) -> Tensor:
        """Return what statistics are taken of, (batch, d), for features (batch, d)."""
        return F.normalize(features, dim=1) if self.normalize else features

    def means(self) -> Tensor:
        """Return the class means (C, d), zeros for a class without a prototype."""
        return self.sums / self.counts.clamp(min=torch.finfo(self.counts.dtype).tiny)[:, None]

    def scores(self, embedded: Tensor) -> Tensor:
        """Return scores (batch, C), 0 at most, of `embedded` (batch, d), all float64."""
        means = self.means()
        if self.normalize:
            means = F.normalize(means, dim=1)
        return softened(-torch.cdist(embedded, means))

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor, weights: Tensor) -> Statistics:
        """Return the statistics of samples; call it in evaluation mode.

        Args:
            x: (n, *input_shape).
            y: (n,) int64.
            weights: (n,) float64, how many samples each stands for.
        """
        parts = [self.features(each) for each in torch.split(x, BATCH)]
        return self.summarise(self.embed(torch.cat(parts)).double(), y, weights)

    def summarise(self, embedded: Tensor, y: Tensor, weights: Tensor) -> Statistics:
        """Return the weighted sums over `embedded` (n, d) float64 of labels y (n,)."""
        members = F.one_hot(y, len(self.counts)) * weights[:, None]
        return {"counts": members.sum(0), "sums": members.T @ embedded}

    @torch.no_grad()
    def publish(self, statistics: Statistics, num_examples: int) -> None:
        """Make `statistics` the model's own, in the form that is averaged.

        Args:
            statistics: Sums over all that the client has, from `measure`.
            num_examples: The weight that the server gives to the client.
        """
        known, received = statistics["counts"] > 0, self.counts.clone()
        for name, fresh in statistics.items():
            buffer, mine = self.get_buffer(name), fresh / num_examples
            if name in self.of_each_class:
                rows = (-1, *[1] * (buffer.dim() - 1))
                count = received.where(received > 0, 1.0).view(rows)
                mine = mine.where(known.view(rows), buffer / count * FAINT)
            buffer.copy_(mine)


def softened(scores: Tensor, knee: float = 100.0) -> Tensor:
    """Return `scores`, which are 0 at most, with a logarithm in place of what is below ``-knee``.

    Their order stays, and however far a sample is from everything, no score comes near that of a
    class which is unknown, or hidden because it is another task's.
    """
    beyond = (-knee - scores).clamp(min=0)
    return scores.clamp(min=-knee) - beyond.log1p()


def total(*parts: Mapping[str, Tensor]) -> Statistics:
    """Return the statistics of the samples of all `parts` together; parts may be empty."""
    sums: Statistics = {}
    for part in parts:
        for name, tensor in part.items():
            sums[name] = sums[name] + tensor if name in sums else tensor
    return sums
