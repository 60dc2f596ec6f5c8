"""Springs of a stack of clients that pull weights in place, where plain SGD follows them.

It is memory traffic that counts: theta, anchor and stiffness are read once and theta is written
once a step, piece by piece, with what lies between in the cache. Large parameters are not stacked:
their anchors and stiffnesses stay where the clients' states hold them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.continual.functional.springs import Spring
from strategies.continual.functional.trees import Tree

PIECE = 2**18
"""Numbers that are worked on at once: few enough for the cache, many enough for the overhead."""
STACKED = 2**12
"""Parameters of fewer numbers are worked on for all clients at once."""


class _Held(NamedTuple):
    """Numbers that a spring holds, (K, m) of all clients or (m,) of one.

    Attributes:
        anchor: Of the spring, as are `stiffness` and `slope`; None for 1 and for 0.
        energy: Where the energies go: (K,), or a scalar.
        bend: Where the slope's part of them goes.
        rate: What the force is multiplied by.
        room: Where distance and force may be written, (m,) each; of one client only.
    """

    anchor: Tensor
    stiffness: Tensor | None
    slope: Tensor | None
    energy: Tensor
    bend: Tensor
    rate: float
    room: tuple[Tensor, Tensor] | None = None


_Window = tuple[Tensor, list[_Held]]
"""Weights, (K, m) or (m,), and the springs that hold them."""


class PullInPlace:
    """The springs of K clients, all of one kind.

    All of them pull from where the weights are before any of them does.
    """

    def __init__(
        self, springs: Sequence[Sequence[Spring]], params: Tree, lr: float, room: Tree
    ) -> None:
        """Take apart what is held.

        Args:
            springs: Of each client, as many as of any other and of the same parameters.
            params: The weights (K, *shape), contiguous; `pull` changes them.
            lr: The learning rate.
            room: Memory to work in, made as it is needed: new memory costs as much as a pass.
        """
        self._together: dict[str, list[_Window]] = {}
        self._alone: dict[str, list[list[_Window]]] = {}
        first = next(iter(params.values()))
        limit = STACKED if first.device.type == "cpu" else None
        self._springs = springs
        self._strengths = first.new_tensor([spring.strength for spring in springs[0]])
        self._rates = [-2 * lr * spring.strength for spring in springs[0]]
        slots = sum(len(_cuts(each[0].numel())) for each in params.values())
        self._energies = first.new_zeros(2, slots, len(springs[0]), len(springs))
        self._slot = 0
        shape = (len(springs[0]), 2, min(PIECE, max(each[0].numel() for each in params.values())))
        if "" not in room or room[""].shape != shape:
            room[""] = first.new_empty(shape)
        self._room = room[""]
        for name, each in params.items():
            flat = each.flatten(1)
            if limit is None or flat.shape[1] < limit:
                self._together[name] = self._hold_all(name, flat)
            else:
                self._alone[name] = self._hold_each(name, flat)
        self._offsets = first.new_zeros(len(springs))
        for client, own in enumerate(springs):
            for spring in own:
                if spring.offset is not None:
                    self._offsets[client].add_(spring.offset, alpha=spring.strength)

    def _hold_all(self, name: str, theta: Tensor) -> list[_Window]:
        """Return a parameter (K, m) as one window, stacking what holds it."""
        energies = self._energies[:, self._slot]
        self._slot += 1
        held = []
        for number in _holding(self._springs[0], name):
            tensors = [_flat(own[number], name) for own in self._springs]
            anchor, stiffness, slope = (_stacked(each) for each in zip(*tensors, strict=True))
            assert anchor is not None
            energy, bend = energies[:, number]
            held.append(_Held(anchor, stiffness, slope, energy, bend, self._rates[number]))
        return [(theta, held)] if held else []

    def _hold_each(self, name: str, theta: Tensor) -> list[list[_Window]]:
        """Return a parameter (K, m) as windows of each client."""
        found: list[list[_Window]] = []
        numbers = _holding(self._springs[0], name)
        cuts = _cuts(theta.shape[1])
        own = slice(self._slot, self._slot + len(cuts))
        self._slot = own.stop
        slots = self._energies[:, own].permute(3, 1, 2, 0)
        for client, springs in enumerate(self._springs):
            windows: list[_Window] = []
            flat = {number: _flat(springs[number], name) for number in numbers}
            for at, cut in enumerate(cuts):
                weights, held = theta[client, cut], []
                for number in numbers:
                    anchor, stiffness, slope = flat[number]
                    distance, force = self._room[number, :, : len(weights)]
                    energy, bend = slots[client, at, number]
                    held.append(
                        _Held(
                            anchor[cut],
                            None if stiffness is None else stiffness[cut],
                            None if slope is None else slope[cut],
                            energy,
                            bend,
                            self._rates[number],
                            (distance, force),
                        )
                    )
                windows.append((weights, held))
            found.append(windows)
        return found

    def pull(self, name: str, clients: range) -> None:
        """Let the springs of some clients pull the weights called `name`, in place."""
        if name in self._together:
            for theta, held in self._together[name]:
                _pull_together(theta, held, slice(clients.start, clients.stop))
        else:
            alone = self._alone[name]
            for client in clients:
                for theta, held in alone[client]:
                    _pull_alone(theta, held)

    def energies(self, clients: int) -> Tensor:
        """Return the penalties of the first clients (clients,) where the latest pulls began."""
        energy, bend = self._energies[..., :clients].sum(1)
        penalties: Tensor = self._strengths @ (energy + 2 * bend)
        return penalties + self._offsets[:clients]


def _cuts(numbers: int) -> list[slice]:
    """Return the pieces of a parameter of so many numbers."""
    return [slice(at, at + PIECE) for at in range(0, numbers, PIECE)]


def _holding(springs: Sequence[Spring], name: str) -> list[int]:
    """Return which of a client's springs hold the parameter called `name`."""
    return [
        number
        for number, each in enumerate(springs)
        if name in (each.anchor if each.stiffness is None else each.stiffness)
    ]


def _flat(spring: Spring, name: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return anchor, stiffness and slope of a parameter, flat."""
    return (
        spring.anchor[name].reshape(-1),
        None if spring.stiffness is None else spring.stiffness[name].reshape(-1),
        spring.slope[name].reshape(-1) if name in spring.slope else None,
    )


def _stacked(column: Sequence[Tensor | None]) -> Tensor | None:
    """Return one tensor (K, m) of all clients'; what all of them share is not copied."""
    tensors = [each for each in column if each is not None]
    if not tensors:
        return None
    if len({each.data_ptr() for each in tensors}) == 1:
        return tensors[0].expand(len(tensors), -1)
    return torch.stack(tensors)


def _pull_together(theta: Tensor, held: Sequence[_Held], clients: slice) -> None:
    """Pull numbers of several clients at once."""
    theta, forces = theta[clients], []
    for anchor, stiffness, slope, energy, bend, *_ in held:
        force = distance = theta - anchor[clients]
        if stiffness is not None:
            force = stiffness[clients] * distance
        torch.sum(force * distance, 1, out=energy[clients])
        forces.append(force)
        if slope is not None:
            torch.sum(slope[clients] * distance, 1, out=bend[clients])
    for (_, _, slope, _, _, rate, *_), force in zip(held, forces, strict=True):
        theta.add_(force, alpha=rate)
        if slope is not None:
            theta.add_(slope[clients], alpha=rate)


def _pull_alone(theta: Tensor, held: Sequence[_Held]) -> None:
    """Pull numbers of one client."""
    for anchor, stiffness, slope, energy, bend, _, room in held:
        assert room is not None
        distance, force = room
        torch.sub(theta, anchor, out=distance)
        if stiffness is None:
            force.copy_(distance)
        else:
            torch.mul(stiffness, distance, out=force)
        torch.dot(force, distance, out=energy)
        if slope is not None:
            torch.dot(slope, distance, out=bend)
    for _, _, slope, _, _, rate, room in held:
        assert room is not None
        theta.add_(room[1], alpha=rate)
        if slope is not None:
            theta.add_(slope, alpha=rate)
