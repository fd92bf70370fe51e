"""The programs that made the embedded teacher, its judge and its prompts."""
