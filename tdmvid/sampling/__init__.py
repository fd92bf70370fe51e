"""Samples of a teacher or a student, and the manifest that says what made them."""
