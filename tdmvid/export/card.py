"""Model card of an exported student: README.md, with the front matter for the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..adapters.bundle import ABSENT_PARTS, FLOAT32_PARTS, VARIANTS
from ..adapters.load import stock_file
from ..backbones.base import Backbone
from ..backbones.lora_files import Beside
from ..backbones.weight_files import component_class
from ..config import RunConfig
from ..config.json_files import read_object
from ..config.parse import map_paths
from ..config.paths import home_path
from ..data.files import write_text
from ..data.markdown import code, escape, front_matter
from .base_name import name_base
from .consumers import consumers
from .licence import licence_text, stated_licence
from .student import Provenance, Student

HOMES = (Path("/home"), Path("/Users"))
"""Folders of home folders."""


def write_card(folder: Path, student: Student, facts: dict, samples: list[str]) -> None:
    """Write README.md for the files in `folder`.

    Args:
        folder: The bundle.
        student: The exported student.
        facts: Contents of export.json.
        samples: Names of its videos or images, one per prompt.
    """
    backbone, provenance = student.backbone, student.provenance
    lora, base = "rank" in facts, escape(name_base(facts["model"]).title)
    parts = [
        _front_matter(student, facts),
        f"# {facts['steps']}-step {'LoRA' if lora else 'student'} for {base}",
        provenance.origin,
        _settings(student, facts),
        "## In diffusers",
        _python(student, facts),
        *_other_files(facts),
        *_samples(samples, student.reference.prompts),
        *_scores(provenance),
        *_recipe(provenance.config, facts["model"]),
        "## Licence",
        licence_text(backbone.folder, name_base(facts["model"]).title),
    ]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _front_matter(student: Student, facts: dict) -> str:
    backbone, hub, lora = student.backbone, name_base(facts["model"]).hub, "rank" in facts
    kind = student.provenance.config.get("objective", {}).get("kind")
    relation = "adapter" if lora else "finetune"
    base = {"base_model": hub, "base_model_relation": relation} if hub else {}
    given = "image" if backbone.takes_images else "text"
    made = "video" if backbone.stock.output == "frames" else "image"
    values: dict[str, Any] = {
        **base,
        **stated_licence(backbone.folder),
        "library_name": "diffusers",
        "pipeline_tag": f"{given}-to-{made}",
        "tags": [
            *(["lora"] if lora else []),
            "distillation",
            "few-step",
            *([kind] if kind else []),
        ],
    }
    return front_matter(values)


def _settings(student: Student, facts: dict) -> str:
    backbone = student.backbone
    base, size = name_base(facts["model"]), backbone.size
    shift = f" (flow shift {facts['shift']:g})" if facts.get("shift") else ""
    rows = {
        "base": f"{code(base.title)}, revision {code(base.revision or 'as found')}",
        **_adapters(facts),
        "timesteps": f"{facts['timesteps']}{shift}",
        "sampler": f"{facts['scheduler']['name']}, deterministic (eta 0){_trained_with(student)}",
        "guidance scale": _guidance(backbone),
        **_learned_guidance(facts.get("teacher"), backbone),
        **(
            {
                "LoRA scale": (
                    f"1.0 (rank {facts['rank']}, alpha {facts['alpha']:g}, stated in the file)"
                )
            }
            if "rank" in facts
            else {}
        ),
        "frames x height x width": (
            f"{size.frames} x {size.height} x {size.width}"
            + (f", {size.fps} fps" if size.frames > 1 else "")
        ),
        "weights": facts["dtype"],
    }
    return "\n".join(
        [
            "| setting | value |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items()),
        ]
    )


def _trained_with(student: Student) -> str:
    """Return the solver of training if it is not the exported sampler; else ""."""
    solver = student.provenance.config.get("objective", {}).get("solver", "ddim")
    if solver == "ddim":
        return ""
    return f"; trained with the solver {code(solver)}, whose samples differ"


def _adapters(facts: dict) -> dict[str, str]:
    """Return table rows for the user's LoRAs of the teacher, loaded separately or included."""
    rows = {}
    for row, found in (
        ("LoRAs to load in addition", facts["model"]["adapters"]),
        ("LoRAs included", facts.get("merged", ())),
    ):
        if found:
            rows[row] = ", ".join(name for one in found for name in _named(one))
    return rows


def _named(adapter: dict) -> Iterator[str]:
    """Yield the name and scale of the LoRA, or of both experts' LoRAs, of an entry."""
    if adapter["path"]:
        yield f"{code(_place(adapter['path']))} at scale {adapter['scale']:g}"
    if second := adapter.get("path_2"):
        stated = adapter.get("scale_2")
        scale = adapter["scale"] if stated is None else stated
        yield f"{code(_place(second))} at scale {scale:g} (low-noise expert)"


def _place(path: str) -> str:
    """Return the last two components of a path, without the machine's folders and user names."""
    place = Path(path)
    homes = (home_path("~"), *(folder / place.parent.name for folder in HOMES))
    return place.name if place.parent in homes else "/".join(place.parts[-2:])


def _guidance(backbone: Backbone) -> str:
    """Return the guidance of a stock call, as its arguments."""
    off, read = backbone.stock.guidance_code(), backbone.guidance
    embedded = "" if read is None else f", {code(f'guidance_scale={read:g}')} (for the network)"
    return f"{code(off) if off else '1.0'} (off){embedded}"


def _learned_guidance(teacher: dict | None, backbone: Backbone) -> dict[str, str]:
    """Return a table row for the teacher's guidance in training, if it is known and was used."""
    if not teacher:
        return {}
    scale, second = teacher["guidance"], teacher.get("guidance_2")
    if scale == 1 and second in (None, 1):
        return {}
    argument = "".join(f"{key}={x:g}" for key, x in backbone.stock.guidance(scale).items())
    first = code(argument) if argument else f"{scale:g}"
    scales = first if second is None else f"{first}, low-noise expert {second:g}"
    negative = teacher["negative_prompt"]
    away = f", negative prompt {code(negative)}" if negative else ""
    dynamic = " (`use_dynamic_cfg`)" if teacher.get("use_dynamic_cfg") else ""
    low, high = teacher.get("guidance_interval", (0, 1))
    times = "" if (low, high) == (0, 1) else f" at times from {low:g} to {high:g} (1 is noise)"
    return {"teacher's guidance scale in training": f"{scales}{dynamic}{times}{away}"}


def _python(student: Student, facts: dict) -> str:
    """Return Python code that samples in stock diffusers, and one line for use with tdmvid."""
    short = (
        'from tdmvid.export.load import load_pipeline; pipe = load_pipeline("path/to/this/folder")'
    )
    files = {one.component: one for one in student.backbone.lora_files}
    beside = student.adapters if facts["model"]["adapters"] else ()
    if converted := [lora for lora in beside if stock_file(lora, files[lora.component]) is None]:
        named = ", ".join(code(_place(lora.where)) for lora in converted)
        lines = [*_helpers(student.backbone), short, *_sampling(student.backbone, facts)]
        return (
            f"The stock loader cannot read {named} unchanged. With tdmvid installed, one line"
            " converts it and loads the base, the LoRAs, the student and the scheduler:\n\n"
            + _block(lines)
        )
    return (
        f"{_block(_stock_lines(student, facts))}\n\nWith tdmvid installed, one line loads the base,"
        f" the student and the scheduler:\n\n{_block([short])}"
    )


def _block(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _stock_lines(student: Student, facts: dict) -> list[str]:
    """Return code that needs only diffusers, unless the scheduler is tdmvid's."""
    module, scheduler = facts["scheduler"]["module"], facts["scheduler"]["name"]
    whole, backbone = "rank" not in facts, student.backbone
    ours = [] if module == "diffusers" else [f"from {module} import {scheduler}"]
    names = {backbone.pipeline_class} | ({type(backbone.network).__name__} if whole else set())
    names |= set() if ours else {scheduler}
    apart = {kind.__name__: kind.__module__ for kind in _kinds_apart(backbone, facts).values()}
    encoders = sorted(name for name in apart if apart[name].startswith("transformers"))
    names |= apart.keys() - {*encoders}
    return [
        *(f"# pip install {package}" for package in backbone.stock.packages),
        "import torch",
        f"from diffusers import {', '.join(sorted(names))}",
        *_helpers(backbone),
        *([f"from transformers import {', '.join(encoders)}"] if encoders else []),
        *(() if whole else backbone.lora.load_imports),
        *ours,
        *name_base(facts["model"]).imports,
        "",
        *_loading(student, facts),
        f'pipe.scheduler = {scheduler}.from_pretrained("path/to/this/folder")',
        *backbone.stock.preparation,
        *_sampling(backbone, facts),
    ]


def _helpers(backbone: Backbone) -> list[str]:
    """Return the line that imports what reads images and writes videos, if it is needed."""
    names = ["export_to_video"] if _makes_videos(backbone) else []
    names += ["load_image"] if backbone.takes_images else []
    return [f"from diffusers.utils import {', '.join(names)}"] if names else []


def _makes_videos(backbone: Backbone) -> bool:
    return backbone.stock.output == "frames"


def _sampling(backbone: Backbone, facts: dict) -> list[str]:
    """Return the lines that sample and write a file."""
    written = (
        f'export_to_video(video, "video.mp4", fps={backbone.size.fps})'
        if _makes_videos(backbone)
        else 'image.save("image.png")'
    )
    offload = "or pipe.enable_model_cpu_offload(), which needs less memory"
    return [f'pipe.to("cuda")  # {offload}', _call(backbone, facts), written]


def _call(backbone: Backbone, facts: dict) -> str:
    """Return the line that samples."""
    stock = backbone.stock
    made = "video" if _makes_videos(backbone) else "image"
    steps = f"num_inference_steps={facts['steps']}"
    arguments = [_given(backbone), steps, stock.guidance_code(), stock.arguments_code()]
    return f"{made} = pipe({', '.join(filter(None, arguments))}).{stock.output}[0]"


def _given(backbone: Backbone) -> str:
    """Return the first arguments of a call, which the user provides."""
    return 'load_image("image.png"), "a prompt"' if backbone.takes_images else '"a prompt"'


def _loading(student: Student, facts: dict) -> list[str]:
    """Return the lines that load the base, the student's network or LoRA, and the user's LoRAs."""
    backbone = student.backbone
    config, part = backbone.config, backbone.spec.network_folder
    dtype, network = f"dtype=torch.{config.dtype}", type(backbone.network).__name__
    kept = facts.get(FLOAT32_PARTS, []) if config.dtype != "float32" else []
    named = "".join(f'"{name}": torch.float32, ' for name in kept)
    dtypes = f'dtype={{{named}"default": torch.{config.dtype}}}' if kept else dtype
    apart = [*_kinds_apart(backbone, facts)]
    lines = [_component(backbone, facts, name) for name in apart]
    if "rank" not in facts:
        lines.append(f'{part} = {network}.from_pretrained("path/to/this/folder", {dtype})')
        apart.append(part)
    given = [_base(facts, facts[VARIANTS]["default"]), *(f"{one}={one}" for one in apart)]
    left_out = dict.fromkeys(facts[ABSENT_PARTS]) | backbone.stock.options
    given += [f"{name}={value!r}" for name, value in left_out.items()]
    lines.append(f"pipe = {backbone.pipeline_class}.from_pretrained({', '.join([*given, dtypes])})")
    if "rank" in facts and facts["model"]["adapters"]:
        lines += backbone.lora.stack_code(list(_beside(student)), backbone.lora_files)
    elif "rank" in facts:
        lines += [files.load_code for files in backbone.lora_files]
    return [*lines, *(["pipe.vae.enable_tiling()"] if config.tiling else [])]


def _base(facts: dict, variant: str | None) -> str:
    """Return the arguments that name the base's files."""
    base = name_base(facts["model"])
    choices = (("revision", base.revision), ("variant", variant))
    stated = [f"{key}={json.dumps(value)}" for key, value in choices if value]
    return ", ".join([base.code, *stated])


def _kinds_apart(backbone: Backbone, facts: dict) -> dict[str, Any]:
    """Return the classes of components that need a variant of their own, by component."""
    index = read_object(backbone.folder / "model_index.json")
    return {one: component_class(index[one]) for one in facts[VARIANTS] if one != "default"}


def _component(backbone: Backbone, facts: dict, name: str) -> str:
    """Return the line that loads a component of the base with a variant of its own."""
    kind = _kinds_apart(backbone, facts)[name].__name__
    dtype = "float32" if name in facts.get(FLOAT32_PARTS, []) else backbone.config.dtype
    base, folder = _base(facts, facts[VARIANTS][name]), f'subfolder="{name}"'
    return f"{name} = {kind}.from_pretrained({base}, {folder}, dtype=torch.{dtype})"


def _beside(student: Student) -> Iterator[Beside]:
    """Yield the user's LoRAs, with paths that do not name folders of this machine."""
    files = {one.component: one for one in student.backbone.lora_files}
    for lora in student.adapters:
        file = Path(lora.where).absolute()
        folder = f"path/to/{_place(str(file.parent))}"
        yield Beside(folder, file.name, lora.strength, files[lora.component])


def _other_files(facts: dict) -> list[str]:
    rows = [
        f"* {' and '.join(map(code, [paths] if isinstance(paths, str) else paths))}: for"
        f" {consumers()[name].card_text(facts)}"
        for name, paths in facts.get("formats", {}).items()
    ]
    return (
        [
            "## For other programs",
            "\n".join(rows)
            + "\n\nUse strength 1.0, guidance (CFG) 1.0 and the number of steps above.",
        ]
        if rows
        else []
    )


def _samples(samples: list[str], prompts: tuple[str, ...]) -> list[str]:
    return (
        [
            "## Samples",
            "\n".join(f"* [{escape(prompt)}]({name})" for prompt, name in zip(prompts, samples)),
        ]
        if samples
        else []
    )


def _scores(provenance: Provenance) -> list[str]:
    tables = [_table(provenance.scores)] if provenance.scores.get("samplers") else []
    tables += [re.sub(r"^# ", "### ", text, flags=re.M).strip() for text in provenance.results]
    return ["## Scores", *tables] if tables else []


def _table(scores: dict) -> str:
    columns = scores["columns"]
    rows = [
        "| sampler | NFE | " + " | ".join(escape(column["label"]) for column in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in scores["samplers"]:
        cells = [
            _cell(row["metrics"].get(column["key"]), column.get("unit", "")) for column in columns
        ]
        rows.append(f"| {escape(row['name'])} | {row.get('nfe', '')} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + f"\n\n{escape(scores.get('protocol', ''))}"


def _cell(metric: dict | None, unit: str) -> str:
    if metric is None:
        return ""
    scale = 100 if unit == "%" else 1
    return f"{scale * metric['value']:.3g} {unit}".strip()


def _recipe(config: dict, base: dict) -> list[str]:
    """Return the run's config, without folders of this machine."""
    if not config:
        return []
    kept = {key: value for key, value in config.items() if key not in ("out", "log", "evaluate")}
    shown = map_paths(RunConfig, kept, _place)
    for part in ("prompts", "real"):
        for key in ("path", "cache"):
            shown.get(part, {}).pop(key, None)
    shown["model"] = shown.get("model", {}) | {"path": name_base(base).title}
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    return [
        "## Training",
        f"Config of the run, without its folders, log and evaluation:\n\n```json\n{text}\n```",
    ]
