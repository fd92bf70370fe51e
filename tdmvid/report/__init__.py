"""The page of a run: plots, gallery, scores."""
