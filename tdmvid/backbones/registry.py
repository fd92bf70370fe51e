"""Find a teacher's files and the family that reads them.

A family registers itself under the diffusers pipeline class that `model_index.json` names. The rest
of the project refers to a family only through this registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

import diffusers
import torch

from ..config import ClipSize, ModelConfig, short
from ..config.json_files import read_object
from ..config.resources import find_model
from ..data.progress import progress
from ..data.reading import reading
from .base import Backbone
from .stock import AGAIN
from .weight_files import HALF

REGISTRY: dict[str, type[Backbone]] = {}
"""Family by pipeline class. Complete after `families()`."""
ARCHITECTURES = Path(__file__).parent / "architectures"
"""Configs of well-known models, so that plans work without a network connection."""
MOVED = {"zai-org": "thudm"}
"""New name -> old name of hub owners; `ARCHITECTURES` lists their models under the old name."""

FamilyClass = TypeVar("FamilyClass", bound=type[Backbone])


def register(cls: FamilyClass) -> FamilyClass:
    """Register a family under its pipeline class. Used as a class decorator."""
    REGISTRY[cls.pipeline_class] = cls
    return cls


def families() -> dict[str, type[Backbone]]:
    """Import every file of this folder and return all families by pipeline class."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return REGISTRY


def load_backbone(
    config: ModelConfig, size: ClipSize, *, device: torch.device | str = "cpu"
) -> Backbone:
    """Load the backbone of a teacher, as the class in its model_index.json requires.

    Args:
        config: Names the teacher and its dtype.
        size: Height, width and number of frames to generate.
        device: Where the weights go.

    Returns:
        The backbone, with the network loaded; text encoders and autoencoder load on first use.

    Raises:
        ValueError: The teacher is not found, its family is unknown, files are missing, or it cannot
            generate `size`.
    """
    folder, family = find_family(config)
    # Do not shorten a path that exists: the user may want to copy it from the message.
    named = repr(config.path) if Path(config.path).exists() else short(config.path)
    loading = progress(f"loading {short(config.path)}")
    with reading(f"model.path={named}", advice=AGAIN), loading:
        return family(folder, config, size, device)


def find_family(config: ModelConfig, *, weights: bool = True) -> tuple[Path, type[Backbone]]:
    """Return a teacher's local folder (see `resolve`) and its family.

    Args:
        config: Names the teacher.
        weights: False fetches configs only.

    Raises:
        ValueError: The teacher is not found, the class in its model_index.json is unknown, or the
            family does not support this model.
    """
    folder = resolve(config, weights=weights)
    own = read_object(folder / "model_index.json").get("_class_name")
    name, known = config.pipeline or own, families()
    if name != own and (name not in known or own not in known[name].also_opens):
        raise ValueError(
            f"model.pipeline={short(name)} cannot be used for model.path={short(config.path)}, a"
            f" {own}: remove model.pipeline"
        )
    if name not in known:
        raise ValueError(
            f"model.path={config.path!r} is a {name}, which is not supported: use a model of one"
            f" of these pipeline classes: {', '.join(sorted(known))}"
        )
    if obstacle := known[name].spec.find_obstacle(folder):
        raise ValueError(f"model.path={short(config.path)}: {obstacle}")
    return folder, known[name]


def resolve(config: ModelConfig, *, weights: bool = True) -> Path:
    """Return the local folder of a teacher. Download it from the hub if `path` is not a folder.

    Args:
        config: Names a diffusers folder or a hub id.
        weights: False fetches configs only. If the hub cannot be reached, the copy of them in
            `architectures/` is used.

    Raises:
        ValueError: There is no such folder or hub id, or the folder lacks files that `config` asks
            for.
    """
    if not config.path:
        raise ValueError(
            "model.path is empty: give a diffusers folder or a hub id, e.g. THUDM/CogVideoX-2b"
        )
    folder = Path(find_model(config.path))
    if folder.is_file():
        raise ValueError(
            f"model.path={short(config.path)} is a single file: {convert_single_file(folder)}"
        )
    if folder.is_dir():
        _check_folder(folder, config, weights=weights)
        return folder
    if config.path.count("/") != 1 or config.path.startswith((".", "/")):
        raise ValueError(
            f"model.path={config.path!r} is neither an existing folder nor a hub id (owner/name);"
            f" relative paths start at {Path.cwd()}"
        )
    try:
        folder = _download(config, weights=weights)
    except Exception as error:  # the hub's client raises many exception types
        kind = type(error).__name__
        known = packaged_configs(config.path)
        if known and not weights and kind != "RevisionNotFoundError":
            return known
        raise ValueError(_explain_failure(config, kind)) from error
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model.path={config.path!r} has no model_index.json on the hub, so it is not a"
            " diffusers pipeline: use the repository of this model in diffusers format; its name"
            " often ends with -Diffusers or -diffusers"
        )
    _check_variant(folder, config, weights=weights)
    return folder


def _explain_failure(config: ModelConfig, kind: str) -> str:
    """Return why a model could not be downloaded, and what to do."""
    if kind == "GatedRepoError":
        return (
            f"model.path={config.path!r} is gated: accept its terms at"
            f" https://huggingface.co/{config.path}, then run `hf auth login`"
        )
    if kind == "RevisionNotFoundError":
        return (
            f"model.revision={config.revision!r} is not a branch, tag or commit of"
            f" model.path={config.path!r} on the hub: omit it to use the newest"
        )
    return (
        f"model.path={config.path!r} is not a folder in {Path.cwd()} and could not be downloaded"
        f" from the hub ({kind}): check the name and the network and try again (finished files are"
        " kept), or use a folder made with `hf download NAME --local-dir FOLDER` on another machine"
    )


def packaged_configs(hub_id: str) -> Path | None:
    """Return the folder in `ARCHITECTURES` with a model's configs, or None if there is none.

    Args:
        hub_id: "owner/name" as on the hub, in any case. The owner's old or new name is accepted.
    """
    owner, _, name = hub_id.lower().partition("/")
    wanted = f"{MOVED.get(owner, owner)}--{name}"
    folders = (folder for folder in ARCHITECTURES.iterdir() if folder.name.lower() == wanted)
    return next(folders, None)


def _check_folder(folder: Path, config: ModelConfig, *, weights: bool) -> None:
    if not (folder / "model_index.json").exists():
        raise ValueError(
            f"model.path={short(config.path)} has no model_index.json: {_other_folder(folder)}"
        )
    if config.revision:
        raise ValueError(
            f"model.revision={config.revision!r} applies to hub ids only, but"
            f" model.path={config.path!r} is a local folder: remove model.revision"
        )
    _check_variant(folder, config, weights=weights)


def _check_variant(folder: Path, config: ModelConfig, *, weights: bool) -> None:
    if weights and config.variant and not any(folder.glob(f"*/*.{config.variant}*")):
        raise ValueError(
            f"model.variant={config.variant!r}: no file of {config.path!r} has this variant in its"
            " name; omit model.variant or choose another folder"
        )


def _other_folder(folder: Path) -> str:
    """Return how to turn a folder that is not a pipeline into one."""
    if (folder / "config.json").is_file():
        kind = str(read_object(folder / "config.json").get("_class_name", "its class"))
        families()
        for name, family in REGISTRY.items():
            spec = getattr(family, "spec", None)
            if spec and spec.network_class.__name__ == kind:
                return (
                    f"it is a {spec.network_folder} only; make it a pipeline with `pipe ="
                    f' diffusers.{name}.from_pretrained("BASE", {spec.network_folder}='
                    f'diffusers.{kind}.from_pretrained("{folder}"))` and'
                    ' `pipe.save_pretrained("FOLDER")`'
                )
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.ckpt"))
    if files:
        return f"it contains single-file checkpoints: {convert_single_file(files[0])}"
    return "use a diffusers pipeline folder"


def convert_single_file(path: Path) -> str:
    """Return the instruction that converts a single-file checkpoint to a pipeline folder."""
    names = [name for name in families() if hasattr(getattr(diffusers, name), "from_single_file")]
    return (
        f'convert it with `pipe = diffusers.PIPELINE.from_single_file("{path}")` and'
        f' `pipe.save_pretrained("FOLDER")`, where PIPELINE is {" or ".join(names)}'
    )


TOKENIZER_FILES = (".model", ".txt", ".jinja")
"""Suffixes of files beside the configs of a component: vocabularies and chat templates."""


def _download(config: ModelConfig, *, weights: bool) -> Path:
    """Download the configs, and the weights of the components that the family loads."""
    from huggingface_hub import snapshot_download

    def fetch(*wanted: str, without: list[str] | None = None) -> Path:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision,
                allow_patterns=list(wanted),
                ignore_patterns=without,
            )
        )

    folder = fetch("*.json", "README.md", "LICENSE*")
    if not weights or not (folder / "model_index.json").is_file():
        return folder
    parts = _loaded_parts(folder)
    fetch("*.json", *(f"{part}/*{suffix}" for part in parts for suffix in TOKENIZER_FILES))
    lacking = [part for part in parts if (folder / part / "config.json").is_file()]
    for pattern, without in _weight_patterns(config.variant):
        # Fetch even if files exist: an interrupted download leaves only some of the shards.
        fetch(
            *(f"{part}/{pattern}" for part in lacking),
            without=[f"*/{without}"] if without else None,
        )
        lacking = [
            part
            for part in lacking
            if all(fnmatch(path.name, without) for path in (folder / part).glob(pattern))
        ]
        if not lacking:
            break
    return folder


def _weight_patterns(variant: str | None) -> list[tuple[str, str]]:
    """Return glob patterns of weight files, best first, each with a pattern of files to exclude."""
    return [
        *([(f"*.{variant}*.safetensors", "")] if variant else []),
        ("*.safetensors", "*.*.safetensors"),
        (f"*.{HALF}*.safetensors", ""),  # some repositories have only these
        *([(f"*.{variant}*.bin", "")] if variant else []),
        ("*.bin", "*.*.bin"),
        ("*.bin", ""),
    ]


def published_bytes(config: ModelConfig, folder: Path) -> int | None:
    """Return the number of bytes of weights that downloading a teacher would fetch.

    Args:
        config: Names a hub id.
        folder: The folder that `resolve` returned for it.

    Returns:
        The sum of the file sizes that the hub lists, or None if the hub cannot be reached.
    """
    if folder.is_relative_to(ARCHITECTURES):  # `resolve` could not reach the hub
        return None
    from huggingface_hub import HfApi

    try:
        asked = HfApi().model_info(
            config.path, revision=config.revision, files_metadata=True, timeout=5
        )
    except Exception:  # many exception types, as in `resolve`
        return None
    sizes = {Path(file.rfilename): file.size or 0 for file in asked.siblings or ()}
    return sum(_part_bytes(part, sizes, config.variant) for part in _loaded_parts(folder))


def _part_bytes(part: str, sizes: dict[Path, int], variant: str | None) -> int:
    """Return the number of bytes of a component's files that `_download` fetches."""
    own = {path.name: size for path, size in sizes.items() if path.parent == Path(part)}
    for pattern, without in _weight_patterns(variant):
        found = [
            size
            for name, size in own.items()
            if fnmatch(name, pattern) and not fnmatch(name, without)
        ]
        if found:
            return sum(found)
    return 0


def _loaded_parts(folder: Path) -> list[str]:
    """Return the folders of a pipeline's components, without those that its family never loads."""
    index = read_object(folder / "model_index.json")
    family = families().get(index.get("_class_name", ""))
    options = getattr(getattr(family, "stock_class", None), "options", {})
    return [
        part
        for part, entry in index.items()
        if isinstance(entry, list) and entry and entry[0] and options.get(part, "") is not None
    ]
