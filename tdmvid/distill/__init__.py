"""Distillation methods and the training iteration."""
