"""Model families, one file each; `base.load_backbone` finds the one a folder needs."""
