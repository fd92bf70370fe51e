"""Compare a student's samples with its teacher's by measures that need no network weights."""
