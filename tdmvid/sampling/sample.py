"""Videos of a list of prompts, from a teacher or a few-step student, on any number of ranks; each
is made once.

The noise of a video is a function of (seed, prompt), so neither batch, rank nor order changes
it. Sampling is the STOCK diffusers pipeline with the scheduler that lies beside the student.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters.bundle import read_facts, stock_defaults, use_student
from ..backbones.base import Backbone, ClipSize, ModelConfig
from ..backbones.registry import load_backbone
from ..data.embeddings import EmbeddingCache, embed_prompts
from ..data.files import file_fingerprint, write_json, write_text
from ..data.video import write_image, write_video
from ..parallel import launch

Naming = Literal["index", "prompt"]
SETTINGS, MANIFEST = "sampling.json", "manifest.jsonl"
_SLUG, _NAME_BYTES = 60, 255


@dataclass(frozen=True)
class Sampler:
    """What samples: the teacher, or with `student` the LoRA or network in that folder."""

    student: Path | None = None
    steps: int | None = None
    """None: as many as the student was trained for, or the stock pipeline's default for a teacher.
    """
    cfg: float | None = None
    """None: 1 (off) for a student, the stock pipeline's default for a teacher."""


@dataclass(frozen=True)
class Shot:
    """One video to make, and the name of its file."""

    prompt: str
    seed: int
    file: str


def plan_shots(
    prompts: list[str], seeds: Iterable[int], *, frames: int, naming: Naming = "index"
) -> list[Shot]:
    """Every prompt with every seed, prompt by prompt; a prompt that comes twice is made once.

    naming: "index" gives 00012_a-red-ring-0.mp4 (the prompt's place in the list, then its seed),
    "prompt" gives `{prompt}-{seed}.mp4`, which VBench reads. ValueError for a prompt that cannot
    name a file.
    """
    suffix, seeds, shots = ".png" if frames == 1 else ".mp4", list(dict.fromkeys(seeds)), []
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    for prompt, index in sorted(first.items(), key=lambda item: item[1]):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_SLUG].rstrip("-")
        stem = prompt if naming == "prompt" else f"{index:05d}_{slug or 'prompt'}"
        for seed in seeds:
            name = f"{stem}-{seed}{suffix}"
            if "/" in name or "\0" in name or len(name.encode()) > _NAME_BYTES:
                raise ValueError(
                    f"prompt {prompt!r} cannot name a file (no '/', at most {_NAME_BYTES} bytes"
                    " with the seed): use naming by index"
                )
            shots.append(Shot(prompt, seed, name))
    return shots


def noise(prompt: str, seed: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of a video, a function of prompt and seed alone: `shape`, float32, on the CPU,
    whatever computes later.
    """
    digest = hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    )


def sample_videos(
    out: Path,
    shots: list[Shot],
    *,
    backbone: Backbone,
    sampler: Sampler,
    world: launch.World,
    batch: int = 1,
    cache: Path = Path("cache/embeddings"),
) -> list[dict]:
    """Make the shots that `out` lacks, each rank its share; returns the manifest: a dict per video,
    in the order of `shots`.

    cache: where text embeddings are kept. ValueError if `out` holds videos of other settings or
    prompts.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: at least 1 video at a time")
    launch.check_same(
        "list of prompts", {"videos": hashlib.sha256(repr(shots).encode()).hexdigest()[:16]}
    )
    steps, cfg = _steps_and_cfg(backbone, sampler)
    settings = _settings(backbone, sampler, steps, cfg)
    done = _claim(out, settings, shots) if world.primary else None
    done = launch.of_first(
        done
        # what machines see of a shared folder may differ for a while, and each would share out another
        # list
    )
    todo = [shot for shot in shots if shot.file not in done]
    if todo:
        conds = _embed(todo, backbone, world, cache)
        pipeline = use_student(backbone, sampler.student)
        null = conds.get([""]).to(world.device) if cfg != 1 else None
        mine = todo[world.rank :: world.size]
        with tqdm(total=len(mine), desc="sampling", unit="video", disable=not world.primary) as bar:
            for start in range(0, len(mine), batch):
                some = mine[start : start + batch]
                z = torch.stack(
                    [noise(shot.prompt, shot.seed, backbone.latent_shape()) for shot in some]
                ).to(world.device)
                cond = conds.get([shot.prompt for shot in some]).to(world.device)
                latents = backbone.stock_latents(pipeline, z, cond, steps=steps, cfg=cfg, null=null)
                _write(
                    out,
                    some,
                    backbone.decode(latents).cpu(),
                    backbone.size.fps,
                    settings,
                    world.rank,
                )
                bar.update(len(some))
        pipeline = None
        # its copy of the network is in a cycle, which would keep the weights on the device while
        # another samples or scores there
        gc.collect()
    launch.barrier()
    made = [asdict(shot) | {"settings": settings} for shot in shots]
    if world.primary:
        _gather_manifest(out, made)
    launch.barrier()
    return made


def _steps_and_cfg(backbone: Backbone, sampler: Sampler) -> tuple[int, float]:
    if sampler.student is not None:
        trained = read_facts(sampler.student).get("steps")
        steps = sampler.steps or trained
        if not steps:
            raise ValueError(
                f"{sampler.student} does not say for how many steps it was trained: give steps"
            )
        if trained and steps != trained:
            raise ValueError(
                f"steps={steps}: the student in {sampler.student} was trained for {trained} steps,"
                " leave steps out"
            )
        return steps, 1.0 if sampler.cfg is None else sampler.cfg
    steps, cfg = stock_defaults(backbone)
    steps, cfg = (
        steps if sampler.steps is None else sampler.steps,
        (cfg if sampler.cfg is None else sampler.cfg),
    )
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1")
    return steps, cfg


def _settings(backbone: Backbone, sampler: Sampler, steps: int, cfg: float) -> dict:
    folder = sampler.student
    found = {
        "model": asdict(backbone.config),
        "video": asdict(backbone.size),
        "steps": steps,
        "cfg": cfg,
    }
    return found | {"weights": folder and weights_of(folder), "student": folder and str(folder)}


def weights_of(folder: Path) -> str:
    """Identifies a student by its content: another run may have written another one to the same
    place.
    """
    return file_fingerprint(
        [
            path
            for name in ("*.safetensors", "scheduler_config.json", "adapter_config.json")
            for path in folder.glob(name)
        ]
    )


def _claim(out: Path, settings: dict, shots: list[Shot]) -> set[str]:
    """Take the folder for these settings; the files that it has. ValueError if it has other
    settings, or one of the files for another prompt.
    """
    path = out / SETTINGS
    if path.is_file():
        there = json.loads(path.read_text())
        for key, value in settings.items():
            if key != "student" and there.get(key) != value:
                raise ValueError(
                    f"{out} holds videos of {key}={there.get(key)!r}, these have {value!r}: use the"
                    " same, or another --out"
                )
    wanted = {shot.file: shot for shot in shots}
    for entry in read_manifest(out):
        shot = wanted.get(entry["file"])
        if shot and (shot.prompt, shot.seed) != (entry["prompt"], entry["seed"]):
            there, asked = (
                f"{prompt!r} of seed {seed}"
                for prompt, seed in ((entry["prompt"], entry["seed"]), (shot.prompt, shot.seed))
            )
            raise ValueError(
                f"{out / shot.file} shows {there}, not {asked}: use the same prompts and seeds, or"
                " another --out"
            )
    write_json(path, settings)
    _gather_manifest(out)
    return {entry["file"] for entry in read_manifest(out) if (out / entry["file"]).is_file()}


def read_manifest(out: Path) -> list[dict]:
    """What was made so far: prompt, seed, file and settings of each video; the last line of a
    killed rank may be cut.
    """
    entries = {}
    for path in [out / MANIFEST, *sorted(out.glob(f".*.{MANIFEST}"))]:
        try:
            lines = path.read_text(encoding="utf-8").split(
                "\n"
            )  # splitlines() would cut at a U+2028 in a prompt
        except FileNotFoundError:  # not there yet, or another job has just gathered it
            continue
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            entries[entry["file"]] = entry
    return [entries[file] for file in sorted(entries)]


def _gather_manifest(out: Path, made: Iterable[dict] = ()) -> None:
    """One manifest of the ranks' own. made: entries that belong there; their lines may be lost
    where two jobs gather in one folder.
    """
    found = {entry["file"]: entry for entry in made} | {
        entry["file"]: entry for entry in read_manifest(out)
    }
    entries = [found[file] for file in sorted(found)]
    if entries:
        write_text(
            out / MANIFEST,
            "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries),
        )
    for part in out.glob(f".*.{MANIFEST}"):
        part.unlink(missing_ok=True)


def _embed(
    shots: list[Shot], backbone: Backbone, world: launch.World, root: Path
) -> EmbeddingCache:
    """The embeddings of the prompts and of no prompt; the text encoder is gone before the denoiser
    runs.
    """
    cache = EmbeddingCache(root, backbone.text_fingerprint())
    if world.primary:
        embed_prompts(cache, ["", *(shot.prompt for shot in shots)], backbone.encode_prompts)
    launch.barrier()
    backbone.release_text()
    return cache


def _write(
    out: Path, shots: list[Shot], videos: Tensor, fps: int, settings: dict, rank: int
) -> None:
    """Each video [3, F, H, W] to its file, then its line to the rank's own manifest: ranks on
    several machines share no file.
    """
    for shot, video in zip(shots, videos):
        try:
            if video.shape[1] == 1:
                write_image(out / shot.file, video[:, 0])
            else:
                write_video(out / shot.file, video, fps=fps)
        except (
            ValueError
        ) as error:  # pixels that are not finite: of thousands of prompts, say which
            other = (
                ""
                if settings["model"]["dtype"] == "float32"
                else (
                    "compute in float32 (--dtype, or model.dtype of a config) with another"
                    " --out, or "
                )
            )
            raise ValueError(
                f"{shot.file}, seed {shot.seed} of {shot.prompt!r}: {error}; {other}leave the"
                " prompt out"
            ) from error
        with (out / f".{rank}.{MANIFEST}").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(shot) | {"settings": settings}, ensure_ascii=False) + "\n")


def read_seeds(text: str) -> list[int]:
    """The seeds in "0,1,2"; ValueError for anything else."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"seeds={text!r}: whole numbers with commas between, e.g. 0,1,2") from None


def load_for_sampling(
    world: launch.World,
    *,
    student: Path | None = None,
    model: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    dtype: str | None = None,
    size: str | None = None,
    fps: int | None = None,
) -> Backbone:
    """The base of a student, as its export.json names it, or the model that is given; what is given
    wins.

    size: frames x height x width, e.g. "49x480x720". ValueError for what neither gives.
    """
    facts = read_facts(student) if student is not None else {}
    known = {"dtype": "bfloat16" if world.device.type == "cuda" else "float32"} | facts.get(
        "model", {}
    )
    if model and model != known.get("path"):
        known |= {"path": model, "revision": None, "variant": None}
    known |= {
        key: value
        for key, value in {"revision": revision, "variant": variant, "dtype": dtype}.items()
        if value
    }
    if not known.get("path"):
        raise ValueError(
            "model is not given, and no student names its base: give a diffusers folder or a hub id"
        )
    shape = facts.get("video", {})
    if size:
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", size)
        if not match:
            raise ValueError(
                f"size={size!r}: frames x height x width, e.g. 49x480x720, or 1x512x512 for an"
                " image"
            )
        shape = shape | dict(zip(("frames", "height", "width"), map(int, match.groups())))
    if not shape:
        raise ValueError(
            "size is not given, and no student says what it was trained on: e.g. 49x480x720 (frames"
            " x height x width)"
        )
    return load_backbone(
        ModelConfig(**known),
        ClipSize(**(shape | ({"fps": fps} if fps else {}))),
        device=world.device,
    )
