"""A fake VBench environment, for tests in which only its place in a run matters."""

from __future__ import annotations

import sys
from pathlib import Path

ANSWER = """import json, pathlib, sys
request = json.loads(pathlib.Path(sys.argv[2]).read_text())
[name] = request["dimensions"]
videos = [path for entry in request["entries"] for path in entry["video_list"]]
scores = [0.5 + 0.1 * path.endswith("-1.mp4") + 0.05 * ("/student/" in path) for path in videos]
rows = [{"video_path": path, "video_results": score} for path, score in zip(videos, scores)]
result = [sum(scores) / len(scores), rows]
file = pathlib.Path(request["out"]) / "scores_eval_results.json"
file.write_text(json.dumps({name: result}))
"""


def write_stand_in(folder: Path) -> Path:
    """Write an environment that scores any dimension as 0.5, plus 0.1 for every second seed and
    0.05 for a student, and return its folder.
    """
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\n{ANSWER}")
    python.chmod(0o755)
    return folder
