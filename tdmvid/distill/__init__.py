"""What one iteration of a distillation method does: where scores are compared, and how."""
