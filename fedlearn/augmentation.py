"""Augmentation: random flips, shifts and rotations of a batch of images, on the images' device.

Each image gets draws of its own. They come from the generator that is passed in, on the
generator's device, so that a CPU generator gives the same draws whatever the images live on.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Rotates, then crops, then flips each image at random, as far as asked for.

    Attributes:
        flip: Whether to mirror left and right with probability 1/2.
        crop: Pixels of zeros added on each side, before a window of the original size is cut at a
            random place; 0 for none.
        rotation: Degrees: an angle is drawn from [-rotation, rotation]; 0 for none.
    """

    flip: bool = False
    crop: int = 0
    rotation: float = 0.0

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return the images (batch, channels, height, width) changed, in a new tensor.

        Args:
            x: (batch, channels, height, width), float.
            generator: Of every draw.
        """
        size, where = len(x), generator.device
        if self.rotation:
            angles = torch.rand(size, generator=generator, device=where)
            x = rotate(x, ((2 * angles - 1) * self.rotation).to(x.device))
        if self.crop:
            ends = 2 * self.crop + 1
            corners = torch.randint(ends, (2, size), generator=generator, device=where)
            x = crop(x, self.crop, *corners.to(x.device))
        if self.flip:
            mirrored = torch.rand(size, generator=generator, device=where) < 0.5
            x = flip(x, mirrored.to(x.device))
        return x


def flip(x: Tensor, mirrored: Tensor) -> Tensor:
    """Return the images (batch, channels, height, width), the `mirrored` (batch,) ones mirrored."""
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x)


def crop(x: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Return windows of the images' own size, out of the images padded with zeros.

    Args:
        x: (batch, channels, height, width).
        padding: Pixels added on each side, at least 0.
        top: (batch,) int64, first row of each window, in [0, 2 * padding].
        left: (batch,) int64, first column, likewise; (padding, padding) is the image itself.
    """
    height, width = x.shape[-2:]
    rows = top[:, None] + torch.arange(height, device=x.device)
    columns = left[:, None] + torch.arange(width, device=x.device)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    # Indices on either side of the channels put the channels last.
    windows = F.pad(x, [padding] * 4)[images, :, rows[:, :, None], columns[:, None, :]]
    return windows.permute(0, 3, 1, 2)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Return the images turned counter-clockwise about their centres, bilinearly; zeros come in.

    Args:
        x: (batch, channels, height, width), float.
        degrees: (batch,) float.
    """
    height, width = x.shape[-2:]
    angles = degrees.to(x.dtype) * (math.pi / 180)
    cos, sin, nothing = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # A grid's coordinates run from -1 to 1 along both sides, however long each side is.
    across = torch.stack([cos, -sin * (height / width), nothing], dim=1)
    down = torch.stack([sin * (width / height), cos, nothing], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
