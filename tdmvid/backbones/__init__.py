"""Model families, one file per family. `registry.load_backbone` selects the family of a model
folder.
"""
