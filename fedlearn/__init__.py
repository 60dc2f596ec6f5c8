"""fedlearn: federated continual learning with Flower, Avalanche, Hydra and W&B."""

__version__ = "0.1.0"
