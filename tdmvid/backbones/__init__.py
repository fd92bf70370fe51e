"""Model families, one file each. `registry.load_backbone` selects the family of a folder."""
