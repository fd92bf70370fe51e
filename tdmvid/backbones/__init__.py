"""Model families, one file each; `registry.load_backbone` finds the one a folder needs."""
