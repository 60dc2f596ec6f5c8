"""Domains: fixed, row-wise transforms of the inputs, applied when rows are gathered.

Each is a value: two with the same parameters are equal, a pickle holds the parameters only. What a
call needs on a device is made at the first call there and kept.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlearn.seeding import generator


@dataclass(frozen=True)
class PixelPermutation:
    """Moves every element of an input to another place, the same for all inputs.

    Colour channels are permuted along with the pixels, as by Avalanche's ``PixelsPermutation``.

    Attributes:
        order: A permutation of 0..d-1, d the elements of an input: element i of the result is
            element ``order[i]`` of the input, both in C order.
    """

    order: tuple[int, ...]
    _placed: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order: must be a permutation of 0..{len(self.order) - 1}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.order,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` (batch, *input_shape) with the elements of each row permuted."""
        order = self._placed.get(x.device)
        if order is None:
            order = self._placed[x.device] = torch.tensor(self.order, device=x.device)
        return x.flatten(1).index_select(1, order).view(x.shape)


@dataclass(frozen=True)
class Rotation:
    """Rotates images about their centre, with bilinear interpolation and zeros from outside.

    Avalanche's Rotated MNIST interpolates by nearest neighbour; at multiples of 90 degrees the two
    agree.

    Attributes:
        angle: Degrees, counter-clockwise, as in ``torch.rot90`` and torchvision.
    """

    angle: float
    _placed: dict[tuple[torch.device, torch.dtype, int, int], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not math.isfinite(self.angle):
            raise ValueError(f"angle={self.angle}: must be finite")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.angle,)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images `x` (batch, channels, height, width), rotated."""
        grid = self._grid(x).expand(len(x), -1, -1, -1)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _grid(self, x: Tensor) -> Tensor:
        """Return where each pixel of the result comes from: (1, height, width, 2), in [-1, 1]."""
        height, width = x.shape[-2:]
        key = (x.device, x.dtype, height, width)
        grid = self._placed.get(key)
        if grid is None:
            cosine = math.cos(math.radians(self.angle))
            sine = math.sin(math.radians(self.angle))
            # The grid's unit is half a side, so a side's length in the other's unit enters where
            # a coordinate crosses over; without it images that are not square would shear.
            theta = torch.tensor(
                [[[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]],
                dtype=torch.float64,
            )
            exact = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
            grid = self._placed[key] = exact.to(x.device, x.dtype)
        return grid


@dataclass(frozen=True)
class Blur:
    """Blurs images with a Gaussian, mirrored at the edges.

    Attributes:
        sigma: Standard deviation in pixels, greater than 0; the kernel reaches 3 sigma.
    """

    sigma: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images `x` (batch, channels, height, width), blurred."""
        for dim in (2, 3):
            reach = min(math.ceil(3 * self.sigma), x.shape[dim] - 1)
            at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
            kernel = torch.exp(-((at / self.sigma) ** 2) / 2)
            kernel = (kernel / kernel.sum()).view((-1, 1) if dim == 2 else (1, -1))
            padding = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
            channels = x.shape[1]
            x = F.conv2d(
                F.pad(x, padding, mode="reflect"),
                kernel.expand(channels, 1, -1, -1),
                groups=channels,
            )
        return x


@dataclass(frozen=True)
class PatternNoise:
    """Adds the same normal noise to every input, as a bad sensor does.

    Attributes:
        std: Standard deviation of the pattern.
        seed: Of the pattern.
    """

    std: float
    seed: int
    _placed: dict[tuple[torch.device, torch.dtype, torch.Size], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.std, self.seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Return `x` (batch, *input_shape) with the pattern added."""
        key = (x.device, x.dtype, x.shape[1:])
        pattern = self._placed.get(key)
        if pattern is None:
            drawn = torch.randn(x.shape[1:], generator=generator(self.seed, "pattern-noise"))
            pattern = self._placed[key] = (self.std * drawn).to(x.device, x.dtype)
        return x + pattern


@dataclass(frozen=True)
class Scale:
    """Multiplies each channel: a weaker contrast, or a tint.

    Attributes:
        factors: One number, or one a channel.
    """

    factors: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images `x` (batch, channels, height, width), each channel scaled."""
        return x * torch.tensor(self.factors, dtype=x.dtype, device=x.device).view(-1, 1, 1)
