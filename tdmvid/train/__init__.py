"""The loop and what surrounds it: set-up, checkpoints, samples, metrics, the report."""
