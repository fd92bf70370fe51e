"""Estimate what a run does, needs and costs, from configs alone."""
