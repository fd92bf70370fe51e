"""The only place that knows torch.distributed and DeepSpeed."""
