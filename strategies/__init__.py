"""Strategies: continual ones for the clients, aggregations for the server."""
