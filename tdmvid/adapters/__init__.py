"""LoRA: attaching the roles, and the files that users take away."""
