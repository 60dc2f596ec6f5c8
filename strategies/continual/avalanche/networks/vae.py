"""A variational autoencoder: the generator of generative replay.

D. Kingma, M. Welling, "Auto-Encoding Variational Bayes", ICLR 2014, with the decoder's variance at
its optimum for each batch (O. Rybkin et al., "Simple and Effective VAE Training with Calibrated
Decoders", ICML 2021, section 3.2). So reconstruction and prior balance whatever the inputs' scale;
with a variance of 1/2, Avalanche's, the code collapses on small images such as the digits.
"""

from math import prod

import torch
from torch import Tensor, nn


class VAE(nn.Module):
    """One hidden layer each way; any input shape, and no batch statistics."""

    low: Tensor
    high: Tensor

    def __init__(self, input_shape: tuple[int, ...], hidden_size: int, latent_size: int) -> None:
        """Build the model.

        Args:
            input_shape: Of one input, without the batch.
            hidden_size: Units of encoder and decoder, at least 1.
            latent_size: Numbers in a code, at least 1.
        """
        super().__init__()
        self.input_shape, self.latent_size = input_shape, latent_size
        size = prod(input_shape)
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 2 * latent_size),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, size)
        )
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))

    def reset(self) -> None:
        """Draw the weights anew, from the global generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def widen(self, x: Tensor) -> None:
        """Let what is generated reach as far as the numbers in `x` do."""
        self.low = torch.minimum(self.low, x.min())
        self.high = torch.maximum(self.high, x.max())

    def loss(self, x: Tensor) -> Tensor:
        """Return the negative evidence bound of `x` (batch, *input_shape), up to a constant.

        It is the mean over the batch of ``d/2 log(mean squared error) + KL(code || N(0, 1))``.
        """
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn(mean.shape).to(mean)
        error = self.decoder(mean + (log_variance / 2).exp() * noise) - x.flatten(1)
        reconstruction = error.pow(2).mean().clamp(min=1e-6).log() * error.shape[1] / 2
        divergence = (log_variance.exp() + mean.pow(2) - 1 - log_variance).sum(1).mean() / 2
        loss: Tensor = reconstruction + divergence
        return loss

    @torch.no_grad()
    def generate(self, count: int) -> Tensor:
        """Return `count` samples (count, *input_shape), drawn from the global generator."""
        codes = torch.randn(count, self.latent_size).to(self.low)
        x: Tensor = self.decoder(codes)
        return x.clamp(self.low, self.high).view(-1, *self.input_shape)
