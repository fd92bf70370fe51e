"""The training loop and everything around it: setup, checkpoints, samples, metrics and export."""
