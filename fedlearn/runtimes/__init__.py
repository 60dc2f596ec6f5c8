"""Runtimes: what runs the ServerApp and the ClientApps."""
