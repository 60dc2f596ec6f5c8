"""Avalanche's continual strategies in federated rounds: the only package that knows Avalanche.

Modules that import Avalanche at their top (`template`, `dataset`, `snapshot`, `heads`,
`local_training` and `corrections`) are imported inside functions, at a client's first turn: the
import takes seconds.
"""
