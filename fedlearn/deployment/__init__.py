"""Runs on real machines: a folder of keys, Flower's own processes, and trainers beside the data."""
