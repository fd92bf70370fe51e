"""Sample from a teacher or a student, and keep a manifest of what made each sample."""
