"""Run folders for tests of the report, and a parser of its page."""

import io
import json
import re
from html.parser import HTMLParser

import av
import numpy as np
from PIL import Image

from tdmvid.guard.bands import judge
from tdmvid.guard.record import GuardRecord

PROMPTS = ["a red circle moving left", '<script>alert("x")</script> & more', "it's 5 > 3"]
SIDES = [f"{who}/{index}.mp4" for who in ("teacher", "student") for index in range(3)]


def picture(level):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(data, format="PNG")
    return data.getvalue()


def clip(level, frames=1):
    """A video of 8 frames per second."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 32
        frame = np.full((32, 32, 3), level, np.uint8)
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


VIDEOS = {name: clip(40 * index) for index, name in enumerate(SIDES)}
IMAGES = {"traj/teacher_0.png": picture(50), "traj/student_0.png": picture(200)}


class Page(HTMLParser):
    """Every element's tag and attributes, the text outside styles and scripts, and what ids there
    are.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self._inside = [], [], None
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.sections = [
            attrs["id"] for tag, attrs in self.elements if tag == "section" and "id" in attrs
        ]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.words.append(data)

    def sources(self, tag):
        return [attrs["src"] for name, attrs in self.elements if name == tag]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    (
        path.write_bytes(content)
        if isinstance(content, bytes)
        else path.write_text(json.dumps(content))
    )


def gallery(out):
    columns = [("teacher, 50 steps", 100, "teacher"), ("student, 4 steps", 4, "student")]
    write(
        out / "gallery/gallery.json",
        {
            "prompts": PROMPTS,
            "columns": [
                {"name": name, "nfe": nfe, "videos": [f"{who}/{i}.mp4" for i in range(3)]}
                for name, nfe, who in columns
            ],
        },
    )
    for name, content in VIDEOS.items():
        write(out / "gallery" / name, content)


def trajectories(out):
    write(
        out / "gallery/trajectories.json",
        {
            "prompt": PROMPTS[1],
            "rows": [
                {"name": who, "labels": ["t=999"], "images": [f"traj/{who}_0.png"]}
                for who in ("teacher", "student")
            ],
        },
    )
    for name, content in IMAGES.items():
        write(out / "gallery" / name, content)


def scores(out):
    def interval(value):
        return {
            "value": value,
            "low": value - 0.02,
            "high": value + 0.02,
        }

    write(
        out / "scores.json",
        {
            "protocol": "512 held-out prompts",
            "columns": [
                {"key": "right", "label": "all right", "unit": "%", "better": "high"},
                {"key": "fd", "label": "distance", "unit": "", "better": "low"},
            ],
            "samplers": [
                {
                    "name": "teacher",
                    "nfe": 100,
                    "seconds_per_video": 12.0,
                    "metrics": {"right": interval(0.9), "fd": interval(8)},
                },
                {
                    "name": "student",
                    "nfe": 4,
                    "seconds_per_video": 0.5,
                    "metrics": {"right": interval(0.95), "fd": interval(9)},
                },
                {
                    "name": "data",
                    "nfe": None,
                    "seconds_per_video": None,
                    "metrics": {"right": interval(0.97)},
                },
            ],
            "checks": [
                {"claim": "as right", "value": "+5 points", "passed": True},
                {"claim": "as close", "value": "1.13 x", "passed": False},
            ],
        },
    )


def metrics(out):
    rows = [
        {"step": s, "loss/fake": 1 / (s + 1), "loss/student": 0.5, "ess": 0.9, "seconds": 36.0}
        for s in range(200)
    ]
    write(
        out / "metrics.jsonl", ("\n".join(map(json.dumps, rows)) + '\n{"step": 200, "lo').encode()
    )


def vbench(out):
    score = {"value": 0.975, "low": 0.972, "high": 0.977}
    samplers = [{"name": name, "scores": {"scene": score}} for name in ("student", "teacher")]
    results = {"title": "VBench <i>", "protocol": "944 prompts", "notes": ["Partial."]}
    results |= {"samplers": samplers, "differences": {}}
    write(out / "vbench/results.json", results)


EXPORT = {"error": 2e-6, "tolerance": 1e-4, "files": ["README.md", "a.safetensors"]}
CARD = """# A student

```python
from diffusers import CogVideoXPipeline
pipe.load_lora_weights("path/to/this/folder")
```

With tdmvid installed:

```python
from tdmvid.export.load import load_pipeline; pipe = load_pipeline("path/to/this/folder")
```
"""
COMMANDS = {"commands": [{"what": "train", "command": "python a.py --x '<y>'"}]}


def lora(out):
    write(out / "lora/export.json", EXPORT)
    write(out / "lora/a.safetensors", bytes(2048))
    write(out / "lora/README.md", CARD.encode())


PARTS = {
    "videos": gallery,
    "trajectories": trajectories,
    "scores": scores,
    "vbench": vbench,
    "curves": metrics,
    "use": lora,
    "commands": lambda out: write(out / "commands.json", COMMANDS),
    "config": lambda out: write(
        out / "config.json", {"name": "shapes & co", "base": "https://example.org/x"}
    ),
}
"""Section of the page to what writes its part of a run."""


def guarded(out, relative):
    """A run whose last check found its sharpness so many times the teacher's."""
    measures = {"sharpness": 0.1}
    verdict = judge({"sharpness": 0.1 * relative}, measures)
    GuardRecord().with_check(100, measures, verdict).write(out)
