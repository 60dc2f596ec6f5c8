"""Continual strategies: how a client learns without forgetting."""
