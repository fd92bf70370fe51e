"""The playground: the samples of `tdmvid sample`, on a page that talks to this machine alone."""

import asyncio
import importlib.util
import json
import socket
from pathlib import Path

import pytest
import torch
from browser import CHROMIUM, Browser
from closeness import assert_near
from refusals import refused

from tdmvid.adapters.bundle import FACTS
from tdmvid.backbones.base import Backbone
from tdmvid.backbones.registry import load_backbone
from tdmvid.cli.main import main
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.data.video import read_video
from tdmvid.parallel.launch import World
from tdmvid.sampling.playground import (
    POLICY,
    LoadNothingElsewhere,
    Playground,
    is_local,
    serving,
)
from tdmvid.sampling.sample import Sampler, sample_videos
from tdmvid.sampling.shots import plan_shots
from tdmvid.sampling.side_by_side import plan_sample, teacher_of

PROMPT = "a red circle moves left"
ONE = World(0, 1, 0, torch.device("cpu"))
MISSING = [
    name
    for name, there in {
        "chromium (apt-get install chromium)": CHROMIUM,
        "gradio (pip install '.[playground]')": importlib.util.find_spec("gradio"),
    }.items()
    if not there
]


@pytest.fixture
def playground(backbone, student, tmp_path):
    return Playground(backbone, ONE, student, tmp_path / "cache", tmp_path)


class Progress:
    """Takes what Gradio's progress bar takes."""

    def __init__(self):
        self.steps = []

    def __call__(self, place, desc, unit=""):
        self.steps.append((desc, *place))


def sample(playground, **changes):
    """Every output of the page, and the progress."""
    wanted = {"prompt": PROMPT, "seed": 3, "steps": 2, "with_teacher": True, "teacher_steps": 3}
    progress = Progress()
    outputs = list(playground.sample(**{**wanted, "image": None, **changes}, progress=progress))
    return outputs, progress.steps


def test_the_teacher_has_the_flow_shift_of_its_sampler(playground, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "tdmvid.sampling.sample.set_flow_shift", lambda pipeline, shift: asked.append(shift)
    )
    for shift in (0.0, 8.0):
        monkeypatch.setattr(
            "tdmvid.sampling.playground.teacher_of",
            lambda *_, shift=shift, **__: Sampler(steps=2, cfg=1.0, shift=shift),
        )
        sample(playground)
    assert asked == [8.0]


def test_both_samples_are_those_of_tdmvid_sample_with_the_same_seed(
    playground, tmp_path, monkeypatch
):
    """Latents are compared, because one video is encoded differently for the least rounding."""
    backbone, decoded = playground.backbone, []
    decode = type(backbone).decode

    def keep(self, latents):
        decoded.append(latents.clone())
        return decode(self, latents)

    monkeypatch.setattr(type(backbone), "decode", keep)
    outputs, _ = sample(playground)
    ours, theirs, _, files = outputs[-1]
    assert files == [ours, theirs] and all(read_video(Path(file)).shape[1] == 9 for file in files)
    samplers = Sampler(playground.student), teacher_of(backbone, playground.student, steps=3)
    for number, sampler in enumerate(samplers):
        sample_videos(
            tmp_path / str(number),
            plan_shots([PROMPT], [3], frames=9),
            backbone=backbone,
            sampler=sampler,
            world=ONE,
            cache=tmp_path / "cache",
        )
        assert_near(decoded[number], decoded[2 + number], rel=1e-4)
    assert (decoded[0] - decoded[1]).abs().max() > 0.01 * decoded[1].abs().max()


def test_the_student_is_shown_while_the_teacher_still_samples(playground):
    outputs, progress = sample(playground)
    assert outputs[0] == (None, None, "", [])
    assert outputs[1][0] and outputs[1][1] is None and outputs[2][0] == outputs[1][0]
    assert progress[0] == ("encoding the prompt", 0, None)
    assert progress[1:] == [("student", done, 2) for done in range(3)] + [
        ("teacher", done, 3) for done in range(4)
    ]


def test_times_and_network_calls_of_both_are_told(playground):
    outputs, _ = sample(playground)
    text = outputs[-1][2]
    assert "| one sample | student | teacher |" in text
    assert "| steps | 2 | 3 |" in text and "| network calls | 2 | 6 |" in text
    assert "divided by" in text and "divided by" not in outputs[1][2]


def test_without_the_teacher_only_the_student_samples(playground):
    outputs, progress = sample(playground, with_teacher=False)
    assert len(outputs) == 2 and outputs[-1][1] is None and len(outputs[-1][3]) == 1
    assert {desc for desc, *_ in progress} == {"encoding the prompt", "student"}


def test_other_steps_than_the_trained_ones_are_told(playground):
    outputs, _ = sample(playground, steps=4, with_teacher=False)
    assert "trained for 2 steps, but samples with 4" in outputs[-1][2]


@pytest.mark.parametrize(
    "changes, fact",
    [({"prompt": " "}, "prompt"), ({"seed": 0.5}, "seed=0.5"), ({"steps": None}, "steps=None")],
)
def test_what_cannot_be_sampled_is_refused(playground, changes, fact):
    with refused(fact):
        sample(playground, **changes)


def test_a_model_that_starts_from_an_image_needs_one(backbone, monkeypatch):
    monkeypatch.setattr(type(backbone), "takes_images", True)
    with refused("image"):
        plan_sample(PROMPT, 0, None, backbone=backbone)


def test_the_teacher_samples_with_what_its_student_has_learned(backbone, student, tmp_path):
    assert teacher_of(backbone, student).cfg == 6.0  # the stock pipeline's
    learned = {"guidance": 3.5, "negative_prompt": "blurred", "use_dynamic_cfg": True}
    (tmp_path / FACTS).write_text(json.dumps({"teacher": learned}))
    teacher = teacher_of(backbone, tmp_path, steps=7)
    assert (teacher.cfg, teacher.negative, teacher.steps) == (3.5, "blurred", 7)
    assert teacher.use_dynamic_cfg
    other, plain = (teacher_of(backbone, tmp_path, cfg=cfg) for cfg in (5.0, 1.0))
    assert (other.cfg, other.negative, other.use_dynamic_cfg) == (5.0, "blurred", True)
    assert (plain.cfg, plain.negative, plain.use_dynamic_cfg) == (1.0, "", False)


def test_without_gradio_the_command_names_what_installs_it(student, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused("error", "gradio", "pip install '.[playground]'", error=SystemExit):
        main(["playground", "--lora", str(student)])


@pytest.mark.parametrize("port", [0, 65_536])
def test_a_port_that_does_not_exist_is_refused(student, monkeypatch, port):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with refused("error", f"--port={port}", error=SystemExit):
        main(["playground", "--lora", str(student), "--port", str(port)])


def test_only_loopback_addresses_are_local():
    assert all(map(is_local, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(is_local, ("0.0.0.0", "192.168.0.1", "::", "example.org")))


def test_every_answer_tells_browsers_to_load_nothing_elsewhere():
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"page"})

    async def keep(message):
        sent.append(message)

    asyncio.run(LoadNothingElsewhere(app)({"type": "http"}, None, keep))
    assert sent[0]["headers"] == [(b"a", b"b"), (b"content-security-policy", POLICY.encode())]
    assert sent[1] == {"type": "http.response.body", "body": b"page"}
    assert "http:" not in POLICY and "*" not in POLICY


@pytest.fixture
def shapes_playground(make_student, tmp_path):
    """The embedded teacher, two of its steps, and a LoRA of it."""
    teacher: Backbone = load_backbone(ModelConfig(path="shapes"), ClipSize(9, 64, 64))
    folder = make_student(teacher, tmp_path / "student")
    return Playground(teacher, ONE, folder, tmp_path / "cache", tmp_path, teacher_steps=2)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def connections(monkeypatch):
    """Addresses to which this process connects."""
    made, connect = [], socket.socket.connect

    def note(self, address):
        made.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", note)
    return made


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)}")
def test_a_person_samples_the_embedded_teacher_in_a_browser(
    shapes_playground, connections, tmp_path
):
    """Both videos play, can be downloaded, and nothing is loaded from another host."""
    loaded = "performance.getEntriesByType('resource').map(entry => entry.name)"
    shown = "[...document.querySelectorAll('video')].filter(v => v.readyState > 1).length"
    with (
        serving(shapes_playground, host="127.0.0.1", port=free_port()) as url,
        Browser(tmp_path) as browser,
    ):
        browser.open(url)
        browser.wait("document.querySelector('#sample') !== null")
        browser.type("#prompt textarea", "a red ring moving left")
        browser.value("document.querySelector('#sample').click()")
        browser.wait(f"{shown} === 2", seconds=120)
        assert "| teacher |" not in browser.value("document.body.innerText")
        times = browser.value("document.querySelector('#times table').innerText")
        files = browser.value(
            "[...document.querySelectorAll('#files a[download]')].map(a => a.download)"
        )
        browser.type("#prompt textarea", " ")
        browser.value("document.querySelector('#sample').click()")
        browser.wait("document.body.innerText.includes('prompt is empty')", seconds=60)
        names = browser.value(loaded)
    assert "student" in times and "teacher" in times
    assert {file.split("-")[-1] for file in files} == {"2steps.mp4"} and len(files) == 2
    assert names and all(name.startswith((url, "data:", "blob:")) for name in names)
    hosts = [one[0] for one in connections if isinstance(one, tuple)]
    assert all(is_local(host) for host in hosts), hosts
