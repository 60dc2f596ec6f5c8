"""A model whose logits of the latest classes are corrected when it predicts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 1.0
"""Pull of the correction towards none, as strong as this many samples."""


class BiasCorrected(nn.Module):
    """In evaluation mode, ``alpha * logits + beta``; in training mode the model's own logits.

    Attributes:
        model: The model that the user chose; outputs logits (batch, C).
        alpha: (C,) float, buffer: the same for all classes of an experience.
        beta: (C,) float, buffer, likewise.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        """Wrap `model`, which has `num_classes` outputs, with a correction that changes nothing."""
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        self.register_buffer("alpha", torch.ones(num_classes, device=device))
        self.register_buffer("beta", torch.zeros(num_classes, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, C) of x (batch, *input_shape)."""
        logits: Tensor = self.model(x)
        return logits if self.training else self.alpha * logits + self.beta

    def correct(self, classes: Tensor, alpha: Tensor, beta: Tensor) -> None:
        """Correct `classes` (k,) by `alpha` and `beta`, which broadcast to (k,), and no other."""
        self.alpha.fill_(1)
        self.beta.fill_(0)
        self.alpha[classes] = alpha.to(self.alpha)
        self.beta[classes] = beta.to(self.beta)


def fit_correction(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """Return alpha and beta, (2,) float64, of `classes`, fitted to samples.

    They minimise the cross-entropy of the corrected logits, in which every class of the samples
    counts the same however many it has, plus ``RIDGE / 2n * ((alpha - 1)^2 + beta^2)``. That is
    strongly convex in two numbers.

    Args:
        logits: (n, C), not corrected.
        labels: (n,) int64; n is at least 1.
        classes: (k,) int64, whose logits are to be corrected.
    """
    logits = logits.double()
    shown = torch.zeros_like(logits)
    shown[:, classes] = 1
    counts = torch.bincount(labels, minlength=logits.shape[1])
    weights = 1 / counts.to(logits)[labels]
    weights /= weights.sum()
    ridge = RIDGE / len(logits)
    none = logits.new_tensor([1.0, 0.0])
    correction = none.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [correction], max_iter=100, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        alpha, beta = correction
        corrected = logits + shown * ((alpha - 1) * logits + beta)
        each = F.cross_entropy(corrected, labels, reduction="none")
        value = weights @ each + ridge / 2 * (correction - none).square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return correction.detach()
