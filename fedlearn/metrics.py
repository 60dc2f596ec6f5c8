"""Metrics of continual and federated learning, from accuracies alone. NumPy only.

``a[i, j]`` is the accuracy on experience j's test set after learning experience i: a square array
(T, T), 0-based, in any unit (the engine uses fractions in [0, 1]); every metric is in the unit of
``a``. NaN means *not measured*. A metric that needs an entry which was not measured is NaN: nothing
is skipped, and nothing unmeasured counts as 0. Forgetting, backward and forward transfer compare
experiences with earlier ones, so they are undefined, and NaN, for T = 1.

Only the entries named in a definition are read, so the upper triangle may be NaN for all but
`forward_transfer`.

A run reports `continual_summary` and `client_summary`. What is in neither is for accuracies that
were measured besides, such as a jointly trained model's or those of the clients' local models.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def average_accuracy(a: ArrayLike) -> float:
    """Return (1/T) Σ_j a[T-1, j], the final accuracy over all experiences."""
    return float(_square(a)[-1].mean())


def average_incremental_accuracy(a: ArrayLike) -> float:
    """Return (1/T) Σ_i mean_{j≤i} a[i, j] (Rebuffi et al., iCaRL, CVPR 2017).

    Each experience weighs the same. Class-incremental papers often pool the samples of all seen
    classes instead: `average_incremental_accuracy_pooled`.
    """
    matrix = _square(a)
    return float(np.mean([matrix[i, : i + 1].mean() for i in range(len(matrix))]))


def average_incremental_accuracy_pooled(a: ArrayLike, sizes: ArrayLike) -> float:
    """Return (1/T) Σ_i (Σ_{j≤i} n_j a[i, j]) / (Σ_{j≤i} n_j), pooled over all seen test samples.

    Args:
        a: (T, T).
        sizes: (T,) n_j, the samples in experience j's test set; positive.
    """
    matrix = _square(a)
    weights = _vector(sizes, len(matrix), "sizes")
    if not (weights > 0).all():
        raise ValueError(f"sizes={weights.tolist()}: every test set must hold at least one sample")
    pooled = [np.average(matrix[i, : i + 1], weights=weights[: i + 1]) for i in range(len(matrix))]
    return float(np.mean(pooled))


def forgetting(a: ArrayLike) -> float:
    """Return (1/(T-1)) Σ_{j<T-1} (max_{j≤l<T-1} a[l, j] - a[T-1, j]) (Chaudhry et al., ECCV 2018).

    In [-1, 1] for fractions: negative where an experience is known better at the end than ever
    before. Deviation from the paper: its maximum also runs over l < j, models that had not learned
    experience j yet; a lucky guess before learning is not knowledge that could be forgotten.
    """
    return _mean(forgetting_per_experience(a))


def forgetting_per_experience(a: ArrayLike) -> Floats:
    """Return (T-1,): max_{j≤l<T-1} a[l, j] - a[T-1, j], the terms of `forgetting`."""
    matrix = _square(a)
    last = len(matrix) - 1
    best = [matrix[j:last, j].max() for j in range(last)]
    return np.asarray(best, dtype=np.float64) - matrix[last, :last]


def backward_transfer(a: ArrayLike) -> float:
    """Return (1/(T-1)) Σ_{j<T-1} (a[T-1, j] - a[j, j]) (Lopez-Paz & Ranzato, NeurIPS 2017, eq. 3).

    Never below minus `forgetting`, whose maximum includes a[j, j].
    """
    matrix = _square(a)
    return _mean(matrix[-1, :-1] - np.diagonal(matrix)[:-1])


def forward_transfer(a: ArrayLike, baseline: ArrayLike) -> float:
    """Return (1/(T-1)) Σ_{j≥1} (a[j-1, j] - b_j) (Lopez-Paz & Ranzato, NeurIPS 2017, eq. 4).

    Args:
        a: (T, T).
        baseline: (T,) b, the accuracy of the model at its random initialisation.
    """
    matrix = _square(a)
    before = _vector(baseline, len(matrix), "baseline")
    return _mean(np.diagonal(matrix, offset=1) - before[1:])


def learning_accuracy(a: ArrayLike) -> float:
    """Return (1/T) Σ_j a[j, j], how well each experience was learned (Riemer et al., ICLR 2019)."""
    return float(np.diagonal(_square(a)).mean())


def intransigence(a: ArrayLike, joint: ArrayLike) -> float:
    """Return (1/T) Σ_j (a*_j - a[j, j]), the inability to learn (Chaudhry et al., ECCV 2018).

    Args:
        a: (T, T).
        joint: (T,) a*_j, the accuracy on experience j of a model trained jointly on experiences
            0..j.
    """
    matrix = _square(a)
    return float((_vector(joint, len(matrix), "joint") - np.diagonal(matrix)).mean())


def continual_summary(a: ArrayLike, baseline: ArrayLike) -> dict[str, float | None]:
    """Return the run's continual-learning metrics as JSON values.

    Experiences that have not been learned yet (rows at the end that are wholly NaN) are left out
    together with their columns, so the summary can be taken after every experience.

    Args:
        a: (T, T).
        baseline: (T,) accuracy of the initial model.

    Returns:
        ``average_accuracy``, ``average_incremental_accuracy``, ``forgetting``, ``bwt``, ``fwt`` and
        ``learning_accuracy``; None where undefined (one experience) or not measured.
    """
    matrix = _square(a)
    before = _vector(baseline, len(matrix), "baseline")
    measured = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    learned = int(measured[-1]) + 1 if len(measured) else 1
    matrix, before = matrix[:learned, :learned], before[:learned]
    values = {
        "average_accuracy": average_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "bwt": backward_transfer(matrix),
        "fwt": forward_transfer(matrix, before),
        "learning_accuracy": learning_accuracy(matrix),
    }
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def client_summary(accuracy_per_client: ArrayLike, weights: ArrayLike) -> dict[str, float]:
    """Return how accuracy is spread over the clients.

    Clients that were not measured (NaN: they hold no test sample) are left out of every statistic.

    Args:
        accuracy_per_client: (K,) each client's accuracy on its own test split.
        weights: (K,) samples that each client tests on, at least 0.

    Returns:
        ``mean``; ``weighted`` by `weights`; ``std``, over the clients as a population; ``worst10``,
        the mean over the worst tenth of the clients, at least one (Li et al., q-FFL, ICLR 2020);
        ``jain``, Jain's index (Σ x)² / (K Σ x²) in [1/K, 1], and 1 where every client is at 0; not
        there if a client is below 0, as the R² of a regression may be.

    Raises:
        ValueError: No client was measured, or the weights are negative or add up to 0.
    """
    accuracy = np.asarray(accuracy_per_client, dtype=np.float64)
    weight = _vector(weights, len(accuracy), "weights")
    measured = ~np.isnan(accuracy)
    # Sorted by value, so that no sum depends on how the clients are numbered.
    order = np.lexsort((weight[measured], accuracy[measured]))
    accuracy, weight = accuracy[measured][order], weight[measured][order]
    if not len(accuracy):
        raise ValueError("accuracy_per_client: no client was measured")
    if (weight < 0).any() or not weight.sum() > 0:
        raise ValueError(f"weights={weight.tolist()}: must be at least 0, and not all 0")
    worst = -(-len(accuracy) // 10)
    # Relative to the largest, so that tiny accuracies do not vanish when squared.
    scaled = accuracy / accuracy[-1] if accuracy[-1] > 0 else np.ones_like(accuracy)
    summary = {
        "mean": float(accuracy.mean()),
        "weighted": float(np.average(accuracy, weights=weight)),
        "std": float(accuracy.std()),
        "worst10": float(accuracy[:worst].mean()),
    }
    if accuracy[0] >= 0:
        summary["jain"] = float(scaled.sum() ** 2 / (len(scaled) * (scaled**2).sum()))
    return summary


def temporal_knowledge_retention(now: ArrayLike, then: ArrayLike) -> float:
    """Return KR_t = (1/K) Σ_k Acc(θ_k^r; T_k^0) / Acc(θ_k^0; T_k^0) (FedTA, CVPR 2025, eq. 11).

    What each client's local model still knows of the client's first experience. 1: all of it; it
    may exceed 1. Introduced by Yang et al. (survey of FCL via knowledge fusion, TKDE 2024).

    Args:
        now: (K,) accuracy of client k's local model at round r on k's first experience.
        then: (K,) the same, of the local model when it had learned that experience (the paper's
            initial round).

    Clients whose denominator is 0, or that were not measured (NaN), are left out, which the paper
    does not settle; NaN where none is left.
    """
    return _mean_ratio(now, then)


def spatial_knowledge_retention(global_model: ArrayLike, local_model: ArrayLike) -> float:
    """Return KR_s = (1/K) Σ_k Acc(θ_g^r; T_k^r) / Acc(θ_k^r; T_k^r) (FedTA, CVPR 2025, eq. 12).

    What aggregation keeps of what the clients know of their current experiences.

    Args:
        global_model: (K,) accuracy of the global model at round r on client k's current experience.
        local_model: (K,) the same, of client k's local model.

    Clients whose denominator is 0, or that were not measured (NaN), are left out, which the paper
    does not settle; NaN where none is left.
    """
    return _mean_ratio(global_model, local_model)


def _square(a: ArrayLike) -> Floats:
    matrix = np.asarray(a, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"a has shape {matrix.shape}: must be (T, T) with T at least 1")
    return matrix


def _vector(values: ArrayLike, length: int, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,):
        raise ValueError(f"{name} has shape {vector.shape}: must be ({length},)")
    return vector


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else float("nan")


def _mean_ratio(numerator: ArrayLike, denominator: ArrayLike) -> float:
    top = np.asarray(numerator, dtype=np.float64)
    bottom = _vector(denominator, len(top), "the denominator")
    defined = ~np.isnan(top) & (bottom > 0)
    return _mean(top[defined] / bottom[defined])
