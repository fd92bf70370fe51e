"""Training engines and communication. Only this package uses torch.distributed and DeepSpeed."""
