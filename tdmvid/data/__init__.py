"""Prompts, cached embeddings, checkpoints, and image and video files."""
