"""Heterogeneity: how different clients are from each other, and from themselves over time.

Numbers about labels and sizes, of what clients train on (what they set aside is not counted). What
the inputs look like, a domain or a client's view, is not seen by any of them.

References: Lin, "Divergence measures based on the Shannon entropy" (1991), for the Jensen-Shannon
divergence; Gini, "Variabilità e mutabilità" (1912).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlearn.seeding import numpy_generator
from fedlearn.types import Shares

MOST_PAIRS = 100_000
"""Pairs of clients compared; of more, so many are drawn: the standard error is below 0.002."""

_MOST_CELLS = 1 << 22  # numbers in one intermediate tensor: 32 MB of float64


@dataclass(frozen=True)
class Heterogeneity:
    """How a scenario's samples differ; None where there are no labels, or nothing to compare.

    Attributes:
        between_clients: Mean Jensen-Shannon divergence of the labels of two clients over their
            whole streams, in [0, 1], over all pairs of clients that hold samples.
        from_all: Mean divergence of a client's labels from those of all clients, in [0, 1].
        over_time: Mean over the clients of the mean divergence between consecutive experiences, in
            [0, 1]; experiences without samples are passed over.
        gini: Gini coefficient of the clients' numbers of samples, in [0, 1): 0 where all are equal.
        smallest: The fewest samples of any client over its stream.
        largest: The most.
        empty: Share of the (client, experience) pairs without a sample, in [0, 1].
        classes: Mean, fewest and most classes that a client holds over its stream.
    """

    between_clients: float | None
    from_all: float | None
    over_time: float | None
    gini: float
    smallest: int
    largest: int
    empty: float
    classes: tuple[float, int, int] | None


def measure(shares: Shares, labels: Tensor | None, num_classes: int) -> Heterogeneity:
    """Return the heterogeneity of what clients hold.

    Args:
        shares: Rows of each (client, experience).
        labels: (n,) int64 in [0, num_classes), of the store that the rows point into; None of a
            regression.
        num_classes: C.
    """
    sizes = shares.sizes()
    totals = sizes.sum(1)
    between = from_all = over_time = classes = None
    if labels is not None:
        held = client_labels(shares, labels, num_classes)
        numbers = (held > 0).sum(1)
        classes = float(numbers.double().mean()), int(numbers.min()), int(numbers.max())
        some = held[totals > 0]
        between = _mean(_divergences_of_pairs(some))
        from_all = _mean(js_divergence(some, held.sum(0)))
        over_time = _mean(changes(shares, labels, num_classes))
    return Heterogeneity(
        between_clients=between,
        from_all=from_all,
        over_time=over_time,
        gini=gini(totals),
        smallest=int(totals.min()),
        largest=int(totals.max()),
        empty=float((sizes == 0).double().mean()),
        classes=classes,
    )


def pair_labels(shares: Shares, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each label stands in each (client, experience): (K, T, C) int64."""
    pairs, rows = shares.pairs()
    number = shares.num_clients * shares.num_experiences
    cells = _count(pairs * num_classes + labels[rows], number, num_classes)
    return cells.view(shares.num_clients, shares.num_experiences, num_classes)


def client_labels(shares: Shares, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each label stands in each client's stream: (K, C) int64."""
    pairs, rows = shares.pairs()
    clients = pairs // shares.num_experiences
    return _count(clients * num_classes + labels[rows], shares.num_clients, num_classes)


def experience_labels(shares: Shares, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often each label stands in each experience, all clients together: (T, C) int64."""
    length = shares.num_experiences
    pairs, rows = shares.pairs()
    return _count(pairs % length * num_classes + labels[rows], length, num_classes)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of distributions, (...) float64 in [0, 1].

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2, where H(p) = -sum_c p_c log2 p_c: 0 for equal
    distributions, 1 for those that share no class (Lin 1991, eq. 4.1 with equal weights).

    Args:
        p: (..., C), counts or probabilities: at least 0, each row with a sum above 0.
        q: Likewise, of a shape that broadcasts with `p`'s.
    """
    p, q = _distributions(p), _distributions(q)
    return _divergence(_entropy((p + q) / 2), _entropy(p), _entropy(q))


def changes(shares: Shares, labels: Tensor, num_classes: int) -> Tensor:
    """Return how much a client's labels change from one experience to the next, on average.

    The mean Jensen-Shannon divergence between the client's consecutive experiences that have
    samples. Only labels that are there are looked at, so that many clients, experiences and classes
    cost no more than their samples.

    Returns:
        (m,) float64 in [0, 1], for each of the m clients that have samples in two experiences.
    """
    sizes = shares.sizes().flatten()
    pairs = sizes.nonzero().flatten()
    clients = pairs // shares.num_experiences
    steps = (clients[1:] == clients[:-1]).nonzero().flatten()  # from pairs[step] to pairs[step + 1]
    holders, rows = shares.pairs()
    cells = holders * num_classes + labels[rows]
    cells, counts = torch.unique(cells, return_counts=True)
    held, label = cells // num_classes, cells % num_classes
    share = counts / sizes[held].double()
    entropy = held.bincount(torch.special.entr(share), minlength=len(sizes))

    mixed: list[Tensor] = []
    weights: list[Tensor] = []
    for side in (0, 1):  # what is left behind, and what comes
        step_of = torch.full_like(sizes, -1)
        step_of[pairs[steps + side]] = torch.arange(len(steps))
        there = step_of[held] >= 0
        mixed.append(step_of[held[there]] * num_classes + label[there])
        weights.append(share[there] / 2)
    cells, at = torch.unique(torch.cat(mixed), return_inverse=True)
    mixture = torch.special.entr(at.bincount(torch.cat(weights), minlength=len(cells)))
    divergences = _divergence(
        (cells // num_classes).bincount(mixture, minlength=len(steps)) / math.log(2),
        entropy[pairs[steps]] / math.log(2),
        entropy[pairs[steps + 1]] / math.log(2),
    )
    _, times = torch.unique_consecutive(clients[steps], return_counts=True)
    whose = torch.arange(len(times)).repeat_interleave(times)
    means: Tensor = whose.bincount(divergences, minlength=len(times)) / times
    return means


def gini(sizes: Tensor) -> float:
    """Return the Gini coefficient of `sizes` (n,), in [0, 1): 0 where all are equal.

    Of x_1 <= ... <= x_n it is G = sum_i (2 i - n - 1) x_i / (n sum_i x_i): half of the mean
    absolute difference of two clients, relative to the mean. It is 1 - 1/n where one client holds
    everything, and 0 where there is nothing to hold.
    """
    ordered = sizes.double().sort().values
    count, total = len(ordered), float(ordered.sum())
    if total == 0:
        return 0.0
    weights = 2 * torch.arange(1, count + 1, dtype=torch.float64) - count - 1
    return float(weights @ ordered) / (count * total)


def _count(cells: Tensor, length: int, num_classes: int) -> Tensor:
    return cells.bincount(minlength=length * num_classes).view(length, num_classes)


def _divergences_of_pairs(held: Tensor) -> Tensor:
    """Return the divergences of two different rows of `held` (K, C), of all pairs or of many.

    The entropy of each row is needed once, not once for each pair.
    """
    count = len(held)
    if math.comb(count, 2) <= MOST_PAIRS:
        one, other = torch.triu_indices(count, count, offset=1)
    else:
        rng = numpy_generator(0, "heterogeneity-pairs")
        drawn = rng.integers(count, size=MOST_PAIRS)
        apart = rng.integers(1, count, size=MOST_PAIRS)
        one, other = torch.from_numpy(np.stack([drawn, (drawn + apart) % count]))
    p = _distributions(held)
    entropy = _entropy(p)
    step = max(_MOST_CELLS // held.shape[1], 1)
    mixtures = [
        _entropy((p[i] + p[j]) / 2) for i, j in zip(one.split(step), other.split(step), strict=True)
    ]
    return _divergence(torch.cat(mixtures), entropy[one], entropy[other])


def _distributions(counts: Tensor) -> Tensor:
    counts = counts.double()
    return counts / counts.sum(-1, keepdim=True)


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy of distributions (..., C), in bits."""
    natural: Tensor = torch.special.entr(p).sum(-1)
    return natural / math.log(2)


def _divergence(mixture: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence, given the entropies of the mixture and of the two, in bits."""
    return (mixture - (p + q) / 2).clamp(0, 1)  # rounding may leave the interval by 1e-16


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None
