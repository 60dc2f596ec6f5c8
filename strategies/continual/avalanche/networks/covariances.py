"""Models that predict with class means and covariances: FeCAM's and linear discriminant analysis.

Beside each class's sums of features they hold sums of the features' products, the lower triangle of
``sum f f'``: a covariance is their mean minus the means' product, in float64.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.networks.prototypes import Prototypes, Statistics, softened


class Covariances(Prototypes):
    """Class means, and products of features.

    Attributes:
        products: (..., d (d + 1) / 2) float64, buffer: sum of the features' products, over the
            number of samples.
        settled: float64, buffer: 0 as long as everybody trains; see `SettlingTemplate`.
    """

    products: Tensor
    settled: Tensor

    def __init__(self, continual: str, model: nn.Module, training: LocalTraining) -> None:
        """Wrap `model`; see `Prototypes`."""
        super().__init__(continual, model, training, normalize=False)
        width = self.head.in_features
        triangle = width * (width + 1) // 2
        leading = self.counts.shape if "products" in self.of_each_class else ()
        self.register_buffer("products", self.counts.new_zeros(*leading, triangle))
        self.register_buffer("settled", self.counts.new_zeros(()))

    def _packed(self, matrix: Tensor) -> Tensor:
        rows, columns = torch.tril_indices(*matrix.shape[-2:], device=matrix.device)
        return matrix[..., rows, columns]

    def _unpacked(self, triangle: Tensor) -> Tensor:
        width = self.sums.shape[1]
        rows, columns = torch.tril_indices(width, width, device=triangle.device)
        matrix = triangle.new_zeros(*triangle.shape[:-1], width, width)
        matrix[..., rows, columns] = triangle
        matrix[..., columns, rows] = triangle
        return matrix


class ClassCovariances(Covariances):
    """FeCAM's classifier: the Mahalanobis distance with a covariance of each class.

    Attributes:
        products: (C, d (d + 1) / 2).
    """

    of_each_class = ("counts", "sums", "products")

    def __init__(
        self,
        continual: str,
        model: nn.Module,
        training: LocalTraining,
        tukey: float,
        shrink_variance: float,
        shrink_covariance: float,
    ) -> None:
        """Wrap `model`.

        Args:
            continual: See `Prototypes`.
            model: See `Prototypes`.
            training: See `Prototypes`.
            tukey: lambda of eq. 9, in (0, 1]; 1 leaves features as they are.
            shrink_variance: gamma_1 of eq. 6, at least 0.
            shrink_covariance: gamma_2 of eq. 6, at least 0.
        """
        super().__init__(continual, model, training)
        self.tukey = tukey
        self.shrink_variance, self.shrink_covariance = shrink_variance, shrink_covariance

    def embed(self, features: Tensor) -> Tensor:
        """Return Tukey's ladder of powers, with the sign of each feature kept."""
        return features.sign() * features.abs().pow(self.tukey)

    def summarise(self, embedded: Tensor, y: Tensor, weights: Tensor) -> Statistics:
        """Return the sums of `Prototypes.summarise` and each class's products."""
        sums = super().summarise(embedded, y, weights)
        products = torch.zeros_like(self.products)
        for label in sorted(set(y.tolist())):
            of_class = y == label
            rows = embedded[of_class]
            products[label] = self._packed((rows * weights[of_class, None]).T @ rows)
        return {**sums, "products": products}

    def correlations(self) -> Tensor:
        """Return (C, d, d): shrunk covariances scaled to a diagonal of 1 (eqs. 6 and 7)."""
        counts = self.counts.where(self.counts > 0, 1.0)
        means = self.means()
        second = self._unpacked(self.products / counts[:, None])
        covariance = second - means[:, :, None] * means[:, None, :]
        width = means.shape[1]
        variance = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        between = covariance.sum((1, 2))[:, None, None] - width * variance
        between = between / max(width * (width - 1), 1)
        identity = torch.eye(width).to(covariance)
        shrunk = covariance + self.shrink_variance * variance * identity
        shrunk = shrunk + self.shrink_covariance * between * (1 - identity)
        shrunk = shrunk + 1e-10 * identity  # a class of equal samples has no variance at all
        deviations = shrunk.diagonal(dim1=1, dim2=2).sqrt()
        return shrunk / (deviations[:, :, None] * deviations[:, None, :])

    def scores(self, embedded: Tensor) -> Tensor:
        """Return minus the squared distances of directions (eqs. 5 and 8), (batch, C)."""
        x, means = F.normalize(embedded, dim=1), F.normalize(self.means(), dim=1)
        ridge = 1e-6 * torch.eye(means.shape[1]).to(means)
        factors = torch.linalg.cholesky(self.correlations() + ridge)
        distances = []
        for mean, factor in zip(means, factors, strict=True):
            white = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False)
            distances.append(white.square().sum(0))
        return softened(-torch.stack(distances, dim=1))


class SharedCovariance(Covariances):
    """Linear discriminant analysis: Gaussian classes with one covariance.

    Attributes:
        products: (d (d + 1) / 2,).
    """

    def __init__(
        self, continual: str, model: nn.Module, training: LocalTraining, shrinkage: float
    ) -> None:
        """Wrap `model`.

        Args:
            continual: See `Prototypes`.
            model: See `Prototypes`.
            training: See `Prototypes`.
            shrinkage: epsilon of eq. 4, in (0, 1].
        """
        super().__init__(continual, model, training)
        self.shrinkage = shrinkage

    def summarise(self, embedded: Tensor, y: Tensor, weights: Tensor) -> Statistics:
        """Return the sums of `Prototypes.summarise` and the products of all."""
        sums = super().summarise(embedded, y, weights)
        products = self._packed((embedded * weights[:, None]).T @ embedded)
        return {**sums, "products": products}

    def covariance(self) -> Tensor:
        """Return the covariance within classes, (d, d): divided by the number of samples."""
        scatter = self._unpacked(self.products) - self.sums.T @ self.means()
        count = self.counts.sum()
        return scatter / count.where(count > 0, 1.0)

    def scores(self, embedded: Tensor) -> Tensor:
        """Return the log-posterior of equally likely classes, up to a number a sample (eq. 4).

        The term that all classes share is kept, so that scores are 0 at most:
        ``-(x - m)' P (x - m) / 2``.
        """
        identity = torch.eye(self.sums.shape[1]).to(self.sums)
        smooth = (1 - self.shrinkage) * self.covariance() + self.shrinkage * identity
        factor = torch.linalg.cholesky(smooth)
        x, means = (
            torch.linalg.solve_triangular(factor, each.T, upper=False).T
            for each in (embedded, self.means())
        )
        return softened(-torch.cdist(x, means).square() / 2)
