"""FedProx: FedAvg whose clients are held near the global model.

T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2. The clients add
the term; its coefficient travels as ``proximal-mu``.
"""

from flwr.serverapp.strategy import FedProx as FlowerFedProx

from strategies.aggregation.fedavg import FedAvg


class FedProx(FlowerFedProx, FedAvg):
    """Flower's FedProx, which tells the coefficient, over our mean."""

    reads_means = True
