"""Optimisers on the server: Flower's, over our mean of the clients' models.

FedAvgM is T.-M. H. Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for
Federated Visual Classification", 2019; the others are S. J. Reddi et al., "Adaptive Federated
Optimization", ICLR 2021, algorithm 2. What each does with the mean is Flower's code.
"""

from flwr.serverapp.strategy import FedAdagrad as FlowerFedAdagrad
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM
from flwr.serverapp.strategy import FedYogi as FlowerFedYogi

from strategies.aggregation.fedavg import FedAvg


class FedAvgM(FlowerFedAvgM, FedAvg):
    """Momentum."""

    reads_means = True


class FedAdagrad(FlowerFedAdagrad, FedAvg):
    """Adagrad."""

    reads_means = True


class FedAdam(FlowerFedAdam, FedAvg):
    """Adam."""

    reads_means = True


class FedYogi(FlowerFedYogi, FedAvg):
    """Yogi."""

    reads_means = True
