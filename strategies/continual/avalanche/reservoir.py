"""Moved to `strategies.continual.reservoir`."""

from strategies.continual.reservoir import Reservoir as Reservoir
from strategies.continual.reservoir import balanced as balanced
from strategies.continual.reservoir import keys_of as keys_of
from strategies.continual.reservoir import labels_of as labels_of
