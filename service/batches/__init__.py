"""Batches: many requests in one file, answered when nobody waits for anything else."""
