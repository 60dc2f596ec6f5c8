"""Scenarios: who learns what, when: datasets, streams over time and partitions over clients."""
