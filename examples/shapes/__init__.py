"""Programs that created the embedded teacher, its judge and its prompts."""
