"""Few-step students of video and image diffusion models by Trajectory Distribution Matching (arXiv 2503.06674)."""
