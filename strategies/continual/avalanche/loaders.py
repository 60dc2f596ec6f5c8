"""Moved to `strategies.continual.batches`."""

from strategies.continual.batches import Batch as Batch
from strategies.continual.batches import MemoryBatches as MemoryBatches
from strategies.continual.batches import ReplayBatches as ReplayBatches
from strategies.continual.batches import TensorBatches as TensorBatches
from strategies.continual.batches import batch_sizes as batch_sizes
