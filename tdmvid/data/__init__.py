"""Prompts, cached text embeddings and video files."""
