"""What a run would do and cost, counted from configs alone."""
