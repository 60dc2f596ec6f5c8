"""Tracking: the engine emits events, trackers consume them."""
