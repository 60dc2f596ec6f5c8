"""Springs: quadratic penalties on how far parameters have moved, and their gradients.

EWC, SI, MAS and FedProx's proximal term all add ``strength * sum_k stiffness_k (theta_k -
anchor_k)^2`` to the loss. Its gradient needs no autograd: ``2 strength stiffness_k (theta_k -
anchor_k)``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.continual.functional.trees import Tree


class Spring(NamedTuple):
    """One quadratic penalty: strength * (sum_k k_k d_k^2 + 2 s_k d_k + offset), d = theta - anchor.

    Attributes:
        strength: At least 0.
        anchor: From where each parameter's distance is measured.
        stiffness: k, at least 0, of the parameters that are held; None for 1 everywhere.
        slope: s, half the gradient at the anchor; empty where the anchor is at rest.
        offset: Of the penalty at the anchor, a scalar; None for 0.
    """

    strength: float
    anchor: Tree
    stiffness: Tree | None = None
    slope: Tree = {}  # noqa: RUF012 - never changed
    offset: Tensor | None = None


def stretch(
    springs: Sequence[Spring], params: Tree, loss: Tensor, gradient: Tree
) -> tuple[Tensor, Tree]:
    """Return `loss` and its `gradient` with the penalties of `springs` added."""
    if not springs:
        return loss, gradient
    gradient = dict(gradient)
    for spring in springs:
        energy = spring.offset
        for name in spring.anchor if spring.stiffness is None else spring.stiffness:
            force, share = _pull(spring, name, params[name])
            energy = share if energy is None else energy + share
            free = gradient.get(name)
            gradient[name] = (
                force * (2 * spring.strength)
                if free is None
                else torch.add(free, force, alpha=2 * spring.strength)
            )
        if energy is not None:
            loss = torch.add(loss, energy, alpha=spring.strength)
    return loss, gradient


def moved(spring: Spring, anchor: Tree) -> Spring:
    """Return the same penalty, measured from another anchor.

    So the penalties of all past experiences become one, however many there are: their stiffnesses,
    slopes and offsets add up once they have an anchor in common. (They could be written without a
    slope, as one spring at rest at the mean of their anchors. But then the pull near the newest
    anchor is a small difference of large numbers, and lost in float32.)
    """
    assert spring.stiffness is not None
    slope, offset = {}, spring.offset
    for name in spring.stiffness:
        slope[name], energy = _pull(spring, name, anchor[name])
        offset = energy if offset is None else offset + energy
    return spring._replace(anchor=anchor, slope=slope, offset=offset)


def _pull(spring: Spring, name: str, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Return half the gradient at `theta`, and what the penalty is there above the anchor's."""
    distance = theta - spring.anchor[name]
    force = distance if spring.stiffness is None else spring.stiffness[name] * distance
    energy = torch.dot(force.flatten(), distance.flatten())
    if name in spring.slope:
        slope = spring.slope[name]
        energy = torch.add(energy, torch.dot(slope.flatten(), distance.flatten()), alpha=2)
        force = force + slope
    return force, energy
