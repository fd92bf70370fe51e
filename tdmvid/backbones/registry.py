"""Find a teacher's files and the family that reads them.

A family registers itself by the diffusers pipeline class that `model_index.json` names; nothing
else in the project knows it.
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
from ..data.reading import reading
from .base import Backbone
from .stock import AGAIN
from .weight_files import HALF

REGISTRY: dict[str, type[Backbone]] = {}
"""Pipeline class -> family; complete after `families()`."""
ARCHITECTURES = Path(__file__).parent / "architectures"
"""Configs of well-known models, for plans without a network connection."""
MOVED = {"zai-org": "thudm"}
"""Owners on the hub whose models `ARCHITECTURES` has under their former name."""

FamilyClass = TypeVar("FamilyClass", bound=type[Backbone])


def register(cls: FamilyClass) -> FamilyClass:
    """Make a family known by its pipeline class; a class decorator."""
    REGISTRY[cls.pipeline_class] = cls
    return cls


def families() -> dict[str, type[Backbone]]:
    """Return all families by pipeline class; imports every file of this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return REGISTRY


def load_backbone(
    config: ModelConfig, size: ClipSize, *, device: torch.device | str = "cpu"
) -> Backbone:
    """Load the backbone of a teacher, by the class in its model_index.json.

    Raises:
        ValueError: the teacher is not found, is of no known family, lacks files, or cannot
            generate `size`.
    """
    folder, family = find_family(config)
    # A path that exists is a place, and is named whole.
    named = repr(config.path) if Path(config.path).exists() else short(config.path)
    with reading(f"model.path={named}", advice=AGAIN):
        return family(folder, config, size, device)


def find_family(config: ModelConfig, *, weights: bool = True) -> tuple[Path, type[Backbone]]:
    """Return a teacher's local folder (see `resolve`) and its family.

    Raises:
        ValueError: the teacher is not found, the class in its model_index.json is unknown, or the
            family runs no such folder.
    """
    folder = resolve(config, weights=weights)
    name = read_object(folder / "model_index.json").get("_class_name")
    known = families()
    if name not in known:
        raise ValueError(
            f"model.path={config.path!r} is a {name}: known pipeline classes are"
            f" {', '.join(sorted(known))}"
        )
    if obstacle := known[name].spec.find_obstacle(folder):
        raise ValueError(f"model.path={short(config.path)}: {obstacle}")
    return folder, known[name]


def resolve(config: ModelConfig, *, weights: bool = True) -> Path:
    """Return the local folder of a teacher; download it from the hub if `path` is not a folder.

    Args:
        config: a diffusers folder or a hub id.
        weights: False fetches configs only; if the hub cannot be reached, a copy of them in
            `architectures/` is used.

    Raises:
        ValueError: there is no such folder or hub id, or the folder lacks what `config` asks for.
    """
    if not config.path:
        raise ValueError(
            "model.path is empty: give a diffusers folder or a hub id, e.g. THUDM/CogVideoX-2b"
        )
    folder = Path(find_model(config.path))
    if folder.is_file():
        raise ValueError(
            f"model.path={short(config.path)} is one file: {convert_single_file(folder)}"
        )
    if folder.is_dir():
        _check_folder(folder, config, weights=weights)
        return folder
    if config.path.count("/") != 1 or config.path.startswith((".", "/")):
        raise ValueError(
            f"model.path={config.path!r} is no folder here and no hub id (owner/name); paths are"
            f" relative to {Path.cwd()}"
        )
    try:
        folder = _download(config, weights=weights)
    except Exception as error:  # the hub's client raises many kinds, of the network or the name
        kind = type(error).__name__
        known = packaged_configs(config.path)
        if known and not weights and kind != "RevisionNotFoundError":
            return known
        raise ValueError(_explain_failure(config, kind)) from error
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model.path={config.path!r} has no model_index.json on the hub: it is no diffusers"
            " pipeline; give the repository that has the same model in that layout, whose name"
            " often ends with -Diffusers or -diffusers"
        )
    _check_variant(folder, config, weights=weights)
    return folder


def _explain_failure(config: ModelConfig, kind: str) -> str:
    """Return why a model could not be downloaded, and what to do."""
    if kind == "GatedRepoError":
        return (
            f"model.path={config.path!r} is gated: accept its terms at"
            f" https://huggingface.co/{config.path}, then `hf auth login`"
        )
    if kind == "RevisionNotFoundError":
        return (
            f"model.revision={config.revision!r} is no branch, tag or commit of"
            f" model.path={config.path!r} on the hub: leave it out for the newest"
        )
    return (
        f"model.path={config.path!r} is no folder in {Path.cwd()} and could not be fetched from"
        f" the hub ({kind}): check the name and the network and try again (files that have arrived"
        " are kept), or give the folder that `hf download NAME --local-dir FOLDER` made elsewhere"
    )


def packaged_configs(hub_id: str) -> Path | None:
    """Return the folder of `ARCHITECTURES` that has a model's configs, None if none has.

    Args:
        hub_id: "owner/name", in any case, as on the hub; an owner's former or present name.
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
            f"model.revision={config.revision!r} is of a hub id, model.path={config.path!r} is"
            " a folder here: leave one of them out"
        )
    _check_variant(folder, config, weights=weights)


def _check_variant(folder: Path, config: ModelConfig, *, weights: bool) -> None:
    if weights and config.variant and not any(folder.glob(f"*/*.{config.variant}*")):
        raise ValueError(
            f"model.variant={config.variant!r}: no file of {config.path!r} has it in its name:"
            " leave it out, or give another folder"
        )


def _other_folder(folder: Path) -> str:
    """Say how a folder that is no pipeline becomes one."""
    if (folder / "config.json").is_file():
        kind = str(read_object(folder / "config.json").get("_class_name", "its class"))
        families()
        for name, family in REGISTRY.items():
            spec = getattr(family, "spec", None)
            if spec and spec.network_class.__name__ == kind:
                return (
                    f"it is a {spec.network_folder} alone, which becomes a pipeline by `pipe ="
                    f' diffusers.{name}.from_pretrained("BASE", {spec.network_folder}='
                    f'diffusers.{kind}.from_pretrained("{folder}"))` and'
                    ' `pipe.save_pretrained("FOLDER")`'
                )
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.ckpt"))
    if files:
        return f"it holds single-file checkpoints: {convert_single_file(files[0])}"
    return "point to a diffusers pipeline folder"


def convert_single_file(path: Path) -> str:
    """Return the lines that convert a single-file checkpoint."""
    names = [name for name in families() if hasattr(getattr(diffusers, name), "from_single_file")]
    return (
        f'convert it by `pipe = diffusers.PIPELINE.from_single_file("{path}")` and'
        f' `pipe.save_pretrained("FOLDER")`, where PIPELINE is {" or ".join(names)}'
    )


def _download(config: ModelConfig, *, weights: bool) -> Path:
    """Download configs, and the weights of those parts that the pipeline has and we load."""
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
    fetch("*.json", *(f"{part}/*{suffix}" for part in parts for suffix in (".model", ".txt")))
    lacking = [part for part in parts if (folder / part / "config.json").is_file()]
    for pattern, without in _weight_patterns(config.variant):
        # Always asked for, whatever is here: an interrupted download leaves some of the shards.
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
    """Return which files of a part are wanted, best first: a pattern, and that of exceptions."""
    return [
        *([(f"*.{variant}*.safetensors", "")] if variant else []),
        ("*.safetensors", "*.*.safetensors"),
        (f"*.{HALF}*.safetensors", ""),  # what some repositories have instead
        *([(f"*.{variant}*.bin", "")] if variant else []),
        ("*.bin", "*.*.bin"),
        ("*.bin", ""),
    ]


def published_bytes(config: ModelConfig, folder: Path) -> int | None:
    """Return the bytes of weights that a download of a teacher fetches, as its repository lists
    them; None if that cannot be asked.

    Args:
        config: a hub id.
        folder: what `resolve` returned for it.
    """
    if folder.is_relative_to(ARCHITECTURES):  # the hub could not be reached a moment ago
        return None
    from huggingface_hub import HfApi

    try:
        asked = HfApi().model_info(
            config.path, revision=config.revision, files_metadata=True, timeout=5
        )
    except Exception:  # as many kinds as in `resolve`
        return None
    sizes = {Path(file.rfilename): file.size or 0 for file in asked.siblings or ()}
    return sum(_part_bytes(part, sizes, config.variant) for part in _loaded_parts(folder))


def _part_bytes(part: str, sizes: dict[Path, int], variant: str | None) -> int:
    """Bytes of those of a part's files that `_download` fetches."""
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
    """Return the folders of a pipeline's parts, without those that its family never loads."""
    index = read_object(folder / "model_index.json")
    family = families().get(index.get("_class_name", ""))
    options = getattr(getattr(family, "stock_class", None), "options", {})
    return [
        part
        for part, entry in index.items()
        if isinstance(entry, list) and entry and entry[0] and options.get(part, "") is not None
    ]
