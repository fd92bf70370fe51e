"""A local page to try a student beside its teacher, with Gradio.

The page is served on the loopback address unless another one is given. It sends no telemetry,
makes no share link, and its browser loads nothing from other hosts.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..adapters.bundle import read_facts
from ..backbones.base import Backbone
from ..data.reading import out_of_memory, reason
from ..parallel import launch
from .sample import Sampler, find_untrained
from .side_by_side import Made, compare, encode, make, plan_sample, teacher_of

INSTALL = "in the clone, pip install '.[playground]' -c constraints-playground.txt"
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self'"
    " 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self'"
    " data:; worker-src 'self' blob:; connect-src 'self'"
)
"""Content security policy: a browser loads nothing from other hosts."""
STYLE = """
#times th, #times td { word-break: normal; }
.min_value, .max_value { color: inherit; }
"""
Outputs = tuple[str | None, str | None, str, list[str]]
"""File of the student, file of the teacher, text, files to download."""


@dataclass(frozen=True)
class Playground:
    """What the page samples with."""

    backbone: Backbone
    world: launch.World
    student: Path
    cache: Path
    """Where text embeddings are kept."""
    out: Path
    """Where samples are written."""
    teacher_steps: int | None = None
    """First value of the page; None takes the stock pipeline's default."""

    def sample(
        self,
        prompt: str,
        seed: float,
        steps: float,
        with_teacher: bool,
        teacher_steps: float,
        image: str | None,
        progress: Callable[..., object],
    ) -> Iterator[Outputs]:
        """Yield the page's outputs: empty, with the student's sample, with the teacher's.

        Args:
            prompt: what the samples show.
            seed: of the noise that both start from.
            steps: of the student.
            with_teacher: whether the teacher samples, too.
            teacher_steps: of the teacher.
            image: file of the first frame, for an image-to-video model.
            progress: called with (done, total) and a description `desc`.
        """
        yield None, None, "", []
        backbone, made = self.backbone, list[Made]()
        shot = plan_sample(prompt, _whole("seed", seed), image, backbone=backbone)
        student = Sampler(self.student, _whole("steps", steps))
        teacher = teacher_of(backbone, self.student, steps=_whole("teacher steps", teacher_steps))
        progress((0, None), desc="encoding the prompt")
        negative = teacher.negative if with_teacher else ""
        conds, encoding = encode(
            shot, negative, backbone=backbone, world=self.world, cache=self.cache
        )
        notes = find_untrained(backbone, self.student, student.steps or 0, 1.0)
        for sampler in [student, teacher] if with_teacher else [student]:
            name = "teacher" if sampler.student is None else "student"

            def on_step(done: int, total: int, name: str = name) -> None:
                progress((done, total), desc=name, unit="steps")

            on_step(0, sampler.steps or 1)
            made.append(
                make(self.out, shot, conds, backbone=backbone, sampler=sampler, on_step=on_step)
            )
            files = [str(one.file) for one in made]
            shown = [*files, None][:2]
            text = "\n\n".join([compare(made, encoding), *notes])
            yield shown[0], shown[1] if len(shown) > 1 else None, text, files


def _whole(name: str, value: float | None) -> int:
    """A number of the page as an integer; ValueError for none and for fractions."""
    if value is None or value != int(value):
        raise ValueError(f"{name}={value}: give a whole number")
    return int(value)


def check_gradio() -> None:
    """Raise ValueError with the command that installs Gradio, if it is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"the playground needs gradio, which is not installed: {INSTALL}")


def is_local(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def build_page(playground: Playground) -> Any:
    """Return the page as `gradio.Blocks`."""
    import gradio

    backbone, facts = playground.backbone, read_facts(playground.student)
    trained, teacher = facts.get("steps") or 4, teacher_of(backbone, playground.student)
    long = playground.teacher_steps or teacher.steps or 50
    kind = gradio.Image if backbone.size.frames == 1 else gradio.Video
    looks = {} if backbone.size.frames == 1 else {"autoplay": True, "loop": True}
    with gradio.Blocks(title="tdmvid playground", analytics_enabled=False) as page:
        gradio.Markdown(_introduction(playground, trained))
        prompt = gradio.Textbox(label="Prompt", lines=2, elem_id="prompt")
        image = gradio.Image(
            label="First frame", type="filepath", visible=backbone.takes_images, elem_id="image"
        )
        with gradio.Row():
            seed = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
            steps = gradio.Slider(
                1, max(16, trained), trained, step=1, label=f"Student steps (trained: {trained})"
            )
            teacher_steps = gradio.Slider(1, max(100, long), long, step=1, label="Teacher steps")
        with_teacher = gradio.Checkbox(True, label="Sample the teacher, too (slower)")
        button = gradio.Button("Sample", variant="primary", elem_id="sample")
        with gradio.Row():
            ours = kind(label="Student", interactive=False, elem_id="student", **looks)
            theirs = kind(label="Teacher", interactive=False, elem_id="teacher", **looks)
        times = gradio.Markdown(elem_id="times")
        files = gradio.File(
            label="Download", file_count="multiple", interactive=False, elem_id="files"
        )
        inputs = [prompt, seed, steps, with_teacher, teacher_steps, image]
        outputs = [ours, theirs, times, files]
        answer = _answer(playground)
        for event in (button.click, prompt.submit):
            event(
                answer,
                inputs,
                outputs,
                concurrency_limit=1,
                concurrency_id="device",
                show_progress_on=theirs,  # the student stays visible while the teacher samples
            )
    return page


def _answer(playground: Playground) -> Callable[..., Iterator[Outputs]]:
    """The function behind the page's button, whose errors are shown on the page."""
    import gradio

    def answer(
        prompt: str,
        seed: float,
        steps: float,
        with_teacher: bool,
        teacher_steps: float,
        image: str | None,
        progress: Any = gradio.Progress(),
    ) -> Iterator[Outputs]:
        try:
            yield from playground.sample(
                prompt, seed, steps, with_teacher, teacher_steps, image, progress
            )
        except (ValueError, OSError, RuntimeError) as error:
            remedy = ": use fewer teacher steps or a smaller --size" * out_of_memory(error)
            raise gradio.Error(f"{reason(error)}{remedy}", duration=None) from error

    return answer


def _introduction(playground: Playground, trained: int) -> str:
    size = playground.backbone.size
    clip = f"{size.height} x {size.width} pixels"
    if size.frames > 1:
        clip = f"{size.frames} frames of {clip}, {size.fps} fps"
    return (
        f"# {trained}-step student beside its teacher\n\n`{playground.student}`, a student of"
        f" `{playground.backbone.config.path}`: {clip}. Both samples start from the same noise,"
        " which depends on prompt and seed alone. The first sample is slower, because weights are"
        " loaded."
    )


def _theme() -> Any:
    """Gradio's theme with fonts of the system, and with enough contrast for small text."""
    import gradio

    theme = gradio.themes.Default(
        primary_hue="teal",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_visited_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
    )


class LoadNothingElsewhere:
    """ASGI middleware that adds the content security policy to every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and add the policy to the head of the answer."""

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = message | {"headers": [*message.get("headers", ()), policy]}
            await send(message)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)


@contextmanager
def serving(playground: Playground, *, host: str, port: int) -> Iterator[str]:
    """Serve the page while the block runs and yield its address.

    Args:
        playground: what samples; files go to a folder that is removed at the end.
        host: address to listen on.
        port: port to listen on.

    Raises:
        ValueError: gradio is not installed, or the port is in use.
    """
    check_gradio()
    with tempfile.TemporaryDirectory(prefix="tdmvid-playground-") as folder:
        # Gradio reads these when it is imported; it keeps a copy of each file that it shows.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": f"{folder}/shown"}
        from starlette.middleware import Middleware

        page = build_page(replace(playground, out=Path(folder)))
        try:
            page.queue().launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                ssr_mode=False,
                prevent_thread_lock=True,
                footer_links=[],
                theme=_theme(),
                css=STYLE,
                app_kwargs={"middleware": [Middleware(LoadNothingElsewhere)]},
            )
        except OSError as error:
            raise ValueError(
                f"--port={port} cannot be used on {host} ({error}): choose another --port"
            ) from None
        try:
            yield page.local_url
        finally:
            page.close(verbose=False)


def serve(playground: Playground, *, host: str, port: int) -> None:
    """Serve the page until Ctrl-C."""
    if not is_local(host):
        print(
            f"warning: --host={host}: everyone who can reach this machine can use the page",
            file=sys.stderr,
        )
    with serving(playground, host=host, port=port) as url:
        print(f"playground: {url} (Ctrl-C stops it)", flush=True)
        threading.Event().wait()
