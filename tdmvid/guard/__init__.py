"""How a student's samples compare with its teacher's, by measures that need no network weights."""
