"""What a stack of clients learns from, step by step: first the rows, then all inputs at once.

The numbers are those of `strategies.continual.functional.epochs`: the same seeds, orders, batches
and draws from memory. Clients come in the order of how many steps they have, the most first, so
that those who still have one are always the first ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlearn.turns import Integers
from fedlearn.types import Samples, Transform
from strategies.continual.functional.trees import Batch

GATHERED = 8 * 2**20
"""Bytes of inputs that are gathered at once, for as many steps as fit; at least one step."""


@dataclass(frozen=True)
class Table:
    """Samples of many clients: rows of a store, and how each of them is read.

    Attributes:
        rows: (m,) int64, rows of the store.
        tasks: (m,) int64, task labels; None where nobody asks.
        domains: (m,) int64, which of `transforms` changes each; None where nothing does.
        transforms: The domains; None for the inputs as they are.
        logits: (m, C), what the model once said of each; None where nobody asks.
    """

    rows: Integers
    tasks: Integers | None = None
    domains: Integers | None = None
    transforms: Sequence[Transform | None] = ()
    logits: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """Which samples of a table each client gets at each step.

    Attributes:
        table: The samples.
        picks: (p,) int64, places in the table, in the order in which they are drawn.
        begins: (steps, n) int64: where in `picks` each client's draw begins.
        sizes: (steps, n) int64: and how many there are, at least 1 as far as a client has steps.
    """

    table: Table
    picks: Integers
    begins: Integers
    sizes: Integers

    def at(self, step: int, clients: int) -> tuple[Integers, Integers]:
        """Return places in the table (clients, width), and how many of each row count (clients,).

        What does not count repeats the client's last sample.
        """
        sizes = self.sizes[step, :clients]
        slots = np.arange(int(sizes.max()))
        if int(sizes.min()) < len(slots):
            slots = np.minimum(slots, sizes[:, None] - 1)
        return self.picks[self.begins[step, :clients, None] + slots], sizes


@dataclass(frozen=True)
class CohortBatch:
    """One step of many clients: a batch each, and behind it what is replayed.

    Attributes:
        clients: k, how many still learn; the first ones.
        width: Samples of the present batch; those behind it are replayed.
        x: (k, samples, *input_shape).
        y: (k, samples), or (k, samples, C).
        task: (k, samples) int64; None where there are no heads.
        present: (k, samples) bool, which are not padding; None if all are there.
        logits: (k, replayed, C); None where nobody asks.
    """

    clients: int
    width: int
    x: Tensor
    y: Tensor
    task: Tensor | None = None
    present: Tensor | None = None
    logits: Tensor | None = None

    @property
    def replays(self) -> bool:
        """Whether anything is replayed."""
        return self.x.shape[1] > self.width

    def batch(self, x: Tensor | None = None) -> Batch:
        """Return it as a `Batch` of stacked tensors, with `x` (k, samples, ...) for the inputs."""
        x = self.x if x is None else x
        present = self._part(x, slice(self.width))
        if self.replays:
            present["replayed"] = self._part(x, slice(self.width, None))
            if self.logits is not None:
                present["replayed"]["logits"] = self.logits
        return present

    def whole(self, x: Tensor) -> Batch:
        """Return it as one batch; with `x` (k, samples, ...), the first ones or all, for inputs."""
        return self._part(x, slice(x.shape[1]))

    def _part(self, x: Tensor, slots: slice) -> Batch:
        part: Batch = {"x": x[:, slots], "y": self.y[:, slots]}
        if self.task is not None:
            part["task"] = self.task[:, slots]
        if self.present is not None:
            part["present"] = self.present[:, slots]
        return part


def shuffled(sizes: Integers, seeds: Sequence[int]) -> Integers:
    """Return the permutations of ``range(size)`` that each seed draws, one behind the other."""
    generator = torch.Generator()
    orders = [
        torch.randperm(size, generator=generator.manual_seed(seed))
        for size, seed in zip(sizes.tolist(), seeds, strict=True)
    ]
    found: Integers = torch.cat(orders).numpy()
    return found


def cut(
    sizes: Integers, steps: Integers, batch_size: int, avoid_one: bool = False
) -> tuple[Integers, Integers, Integers]:
    """Return where each step's batch begins in its pass, its size, and its pass: (steps, n) each.

    Args:
        sizes: (n,) int64, samples of each client, at least 1.
        steps: (n,) int64; steps beyond them mean nothing.
        batch_size: At least 1.
        avoid_one: See `strategies.continual.batches.batch_sizes`.
    """
    batches = -(-sizes // batch_size)
    passes, place = np.divmod(np.arange(int(steps.max()))[:, None], batches)
    begins = place * batch_size
    counts = np.minimum(batch_size, sizes - begins)
    if avoid_one and batch_size > 2:
        odd = (sizes % batch_size == 1) & (sizes > batch_size)
        counts -= odd & (place == batches - 2)
        last = odd & (place == batches - 1)
        begins, counts = begins - last, counts + last
    return begins, counts, passes


def batches(
    samples: Samples,
    steps: Integers,
    present: Draws,
    replayed: Draws | None,
    device: torch.device,
) -> Iterator[CohortBatch]:
    """Return every step's batches, gathered for many steps at once.

    Args:
        samples: The store.
        steps: (n,) int64, of each client, in descending order.
        present: What is learnt.
        replayed: What comes back besides; None for nothing.
        device: Where the model is.
    """
    sources = (present,) if replayed is None else (present, replayed)
    active = _active(steps)
    width = sum(int(each.sizes.max()) for each in sources)
    row_bytes = samples.x[:1].numel() * max(4, samples.x.element_size())
    step, last = 0, len(active)
    while step < last:
        fit = max(1, GATHERED // max(1, row_bytes * width * int(active[step])))
        yield from _block(samples, range(step, min(step + fit, last)), active, sources, device)
        step += fit


def num_samples(steps: Integers, present: Draws, replayed: Draws | None) -> int:
    """Return how many samples `batches` gives a client over all steps, padding included."""
    sources = (present,) if replayed is None else (present, replayed)
    return sum(
        int(each.sizes[step, :clients].max())
        for step, clients in enumerate(_active(steps).tolist())
        for each in sources
    )


def _active(steps: Integers) -> Integers:
    """Return of each step how many clients take it, given each client's steps, descending."""
    found: Integers = np.searchsorted(-steps, -np.arange(int(steps[0])), side="left")
    return found


def _block(
    samples: Samples,
    block: range,
    active: Integers,
    sources: Sequence[Draws],
    device: torch.device,
) -> Iterator[CohortBatch]:
    """Return the batches of a block of steps."""
    drawn = [[each.at(step, int(active[step])) for each in sources] for step in block]
    places = [[at for at, _ in parts] for parts in drawn]
    rows = _column(places, [each.table.rows for each in sources], samples.x.device)
    x = _in_domain(samples.inputs(rows), places, sources).to(device)
    y = samples.targets(rows).to(device)
    tasks = [each.table.tasks for each in sources]
    task = None if tasks[0] is None else _column(places, tasks, device)
    begin = 0
    for step, parts in zip(block, drawn, strict=True):
        clients = int(active[step])
        widths = [at.shape[1] for at, _ in parts]
        end, shape = begin + clients * sum(widths), (clients, sum(widths))
        said = sources[-1].table.logits
        yield CohortBatch(
            clients,
            widths[0],
            x[begin:end].view(*shape, *x.shape[1:]),
            y[begin:end].view(*shape, *y.shape[1:]),
            None if task is None else task[begin:end].view(shape),
            _present(parts, device),
            None if said is None else said[torch.from_numpy(parts[-1][0])].to(device),
        )
        begin = end


def _column(
    places: Sequence[Sequence[Integers]],
    columns: Sequence[Integers | None],
    device: torch.device,
) -> Tensor:
    """Return `_flat` as a tensor."""
    return torch.from_numpy(_flat(places, columns)).to(device)


def _flat(places: Sequence[Sequence[Integers]], columns: Sequence[Integers | None]) -> Integers:
    """Return a column of the samples at `places`, step by step, client by client, flat."""
    found = [
        np.concatenate(
            [column[at] for at, column in zip(parts, columns, strict=True) if column is not None],
            axis=1,
        ).ravel()
        if len(parts) > 1
        else columns[0][parts[0]].ravel()  # type: ignore[index]
        for parts in places
    ]
    return found[0] if len(found) == 1 else np.concatenate(found)


def _in_domain(x: Tensor, places: Sequence[Sequence[Integers]], sources: Sequence[Draws]) -> Tensor:
    """Return inputs `x` (m, *input_shape), flat as from `_column`, each in its own domain."""
    columns = [each.table.domains for each in sources]
    if columns[0] is None:
        return x
    domains, transforms = _flat(places, columns), sources[0].table.transforms
    found = np.unique(domains).tolist()  # here, so that nobody waits for a device
    if len(found) == 1:
        transform = transforms[found[0]]
        return x if transform is None else transform(x)
    changed = x.clone()
    for domain in found:
        transform = transforms[domain]
        if transform is not None:
            at = torch.from_numpy(np.flatnonzero(domains == domain)).to(x.device)
            changed[at] = transform(x[at])
    return changed


def _present(parts: Sequence[tuple[Integers, Integers]], device: torch.device) -> Tensor | None:
    """Return (k, samples) bool, which samples of a step are no padding; None if all are there."""
    if all(int(sizes.min()) == at.shape[1] for at, sizes in parts):
        return None
    there = [np.arange(at.shape[1]) < sizes[:, None] for at, sizes in parts]
    return torch.from_numpy(np.concatenate(there, axis=1)).to(device)
