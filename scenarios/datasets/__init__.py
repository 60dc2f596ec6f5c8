"""Datasets, one source a module; each module's function of the same name returns a `Dataset`."""
