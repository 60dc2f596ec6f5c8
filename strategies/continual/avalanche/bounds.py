"""Moved to `strategies.continual.bounds`."""

from strategies.continual.bounds import above as above
from strategies.continual.bounds import at_least as at_least
from strategies.continual.bounds import one_of as one_of
from strategies.continual.bounds import within as within
