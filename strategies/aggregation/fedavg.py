"""FedAvg (McMahan et al. 2017, algorithm 1), summed exactly enough to be the same everywhere.

Deviations from Flower's own: sums run in float64 in the order of the replies, which the server
makes the order of client ids, so the result is the same bit for bit under every executor;
parameters keep their dtype.
"""

from collections.abc import Iterable
from typing import cast

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor

from fedlearn.records import metrics_of, to_arrays, to_tensors


class FedAvg(FlowerFedAvg):
    """The average of the clients' parameters, weighted by their numbers of samples."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the weighted mean of the replies' parameters and of their metrics.

        Args:
            server_round: 1-based.
            replies: Screened replies, in the order to sum them in.
        """
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid:
            return None, None
        weights = [
            float(cast(float, metrics_of(message)[self.weighted_by_key])) for message in valid
        ]
        models = [to_tensors(next(iter(m.content.array_records.values()))) for m in valid]
        metrics = self.train_metrics_aggr_fn([m.content for m in valid], self.weighted_by_key)
        return to_arrays(weighted_mean(models, weights)), metrics


def weighted_mean(models: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Return sum_k w_k * theta_k / sum_k w_k for each name, in the dtype of the inputs.

    Args:
        models: One model's named tensors each; the same names, shapes and dtypes.
        weights: One positive weight each.
    """
    total = sum(weights)
    mean: dict[str, Tensor] = {}
    for name, like in models[0].items():
        sums = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        for model, weight in zip(models, weights, strict=True):
            sums.add_(model[name], alpha=weight / total)  # each element is widened on the way
        mean[name] = sums.to(like.dtype)
    return mean
