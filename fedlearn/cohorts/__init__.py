"""Cohort samplers: who trains in a round."""
