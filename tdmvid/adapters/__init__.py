"""LoRA adapters: attach them to the roles, and read and write their files."""
