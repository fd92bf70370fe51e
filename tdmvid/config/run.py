"""What a run is: frozen dataclasses to and from one JSON file, with `--set a.b=c` on top.

Unknown keys and wrong types are refused by their dotted path. Settings that belong to one
part of the project are declared there (ModelConfig, TDM, OptimConfig, ...); this file only
puts them together.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..adapters.lora import LoraSettings
from ..backbones.base import ClipSize, ModelConfig
from ..data.latents import RealConfig
from ..diffusion.grid import TimeGrid, explicit, shifted, uniform
from ..diffusion.process import Process
from ..distill.objective import objectives
from ..distill.tdm import TDM
from ..parallel.optim import OptimConfig
from .resources import find_config


@dataclass(frozen=True)
class GridConfig:
    """The student's times; see diffusion/grid.py."""

    kind: Literal["uniform", "shifted", "explicit"] = "uniform"
    steps: int = 4
    start: float = 1.0
    shift: float = 1.0
    timesteps: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind == "uniform" and self.shift != 1:
            raise ValueError(
                f"grid.shift={self.shift} does nothing to grid.kind='uniform': use kind 'shifted',"
                " or leave it out (--set grid.shift=1)"
            )
        if self.kind != "explicit" and self.timesteps:
            raise ValueError(
                f"grid.timesteps={list(self.timesteps)} are of grid.kind='explicit', this is"
                f" {self.kind!r}: use that, or leave them out (--set grid.timesteps=[])"
            )
        if (
            self.kind == "explicit"
            and self.timesteps
            and self.steps not in (len(self.timesteps), GridConfig.steps)
        ):
            raise ValueError(
                f"grid.steps={self.steps} does nothing to the {len(self.timesteps)} listed"
                " timesteps: list as many, or use kind 'uniform' or 'shifted'"
            )
        if self.kind == "explicit" and (self.shift != 1 or self.start != 1):
            raise ValueError(
                f"grid.shift={self.shift}, start={self.start} do nothing to listed timesteps: leave"
                " them out (--set grid.shift=1 --set grid.start=1), or use kind 'shifted'"
            )

    def build(self, process: Process) -> TimeGrid:
        """The grid for a process; ValueError names what does not fit."""
        if self.kind == "explicit":
            return explicit(list(self.timesteps), process)
        if self.kind == "uniform":
            return uniform(self.steps, process, start=self.start)
        return shifted(self.steps, self.shift, process, start=self.start)

    def family(self, process: Process, step_set: tuple[int, ...]) -> tuple[TimeGrid, ...]:
        """The grids that are trained: this one, or one for each K of the set."""
        if step_set and self.kind == "explicit":
            raise ValueError(
                f"objective.step_set={step_set}: listed timesteps are one grid; use"
                " grid.kind='uniform' or 'shifted'"
            )
        if step_set and self.steps not in step_set:
            raise ValueError(
                f"grid.steps={self.steps} is not in objective.step_set={step_set}: it is what"
                " samples show, choose one of the set"
            )
        return tuple(dataclasses.replace(self, steps=k).build(process) for k in step_set) or (
            self.build(process),
        )


@dataclass(frozen=True)
class PromptConfig:
    """Training prompts, and where their embeddings are cached."""

    path: str = ""
    column: str = "prompt"
    cache: str = "cache/embeddings"
    limit: int = 0
    """Use only the first so many prompts; 0 uses all."""

    def __post_init__(self):
        if self.limit < 0:
            raise ValueError(f"prompts.limit={self.limit}: a number of prompts; 0 uses all")


@dataclass(frozen=True)
class BatchConfig:
    """Videos per optimiser step = micro x accumulation x data-parallel ranks."""

    micro: int = 1
    accumulation: int = 1

    def __post_init__(self):
        if self.micro < 1 or self.accumulation < 1:
            raise ValueError(
                f"batch.micro={self.micro}, accumulation={self.accumulation}: both are at least 1"
            )


@dataclass(frozen=True)
class ParallelConfig:
    """How the work is spread; `auto` uses DeepSpeed when a launcher started this process."""

    backend: Literal["auto", "none", "deepspeed"] = "auto"
    zero_stage: int = 3
    sequence: int = 1
    """Neighbouring ranks that share the tokens of one video (Ulysses); the rest are data parallel.
    """
    offload: Literal["none", "optimizer", "all"] = "none"
    """What waits in host memory: the optimiser's state, or the sharded weights too (ZeRO-3)."""
    gradient_checkpointing: bool = False
    keep_attention: bool = False
    """With gradient_checkpointing: keep each attention's output too, which on a long sequence is
    little to hold and most of what is computed again.
    """
    compile: bool = False
    """Compile the network's blocks by torch.compile: a minute or more at the start, then quicker
    calls. With ZeRO up to stage 2.
    """
    share_base: bool = True
    """One frozen base for student and fake; false gives the fake a copy, to compare with."""
    timeout_minutes: float = 30.0
    """A rank that waits longer for another one ends the run; shortly before, every rank writes
    where it stands.
    """

    def __post_init__(self):
        if not 0 < self.timeout_minutes <= 525_600:
            raise ValueError(
                f"parallel.timeout_minutes={self.timeout_minutes}: a time above 0, of a year"
                " (525600) at most"
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(
                f"parallel.zero_stage={self.zero_stage}: choose 0 (nothing sharded), 1 (optimiser"
                " sharded), 2 (gradients too) or 3 (weights too)"
            )
        if self.keep_attention and (not self.gradient_checkpointing or self.compile):
            raise ValueError(
                "parallel.keep_attention=true is a kind of gradient_checkpointing, without compile:"
                " set gradient_checkpointing=true and compile=false"
            )
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                "parallel.offload='all' needs zero_stage 3, which shards the weights; this is"
                f" {self.zero_stage}"
            )
        if self.sequence < 1:
            raise ValueError(f"parallel.sequence={self.sequence}: at least 1 rank holds a sequence")


@dataclass(frozen=True)
class LogConfig:
    """How often, in steps; 0 turns a thing off. The last step always has all of them."""

    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    sample_every: int = 100
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the samples and of the report's gallery; empty takes the first training prompts.
    """
    sample_count: int = 4
    seed: int = 1234
    """Of the noise of samples and gallery."""
    teacher_steps: int = 50
    teacher_shift: float = 1.0
    """Flow shift of the teacher's long samples: what its own scheduler has, 1 for an even grid."""

    def __post_init__(self):
        if min(self.checkpoint_every, self.sample_every) < 0:
            raise ValueError(
                f"log.checkpoint_every={self.checkpoint_every}, sample_every={self.sample_every}:"
                " steps between two; 0 turns it off"
            )
        if self.keep_checkpoints < 1:
            raise ValueError(
                f"log.keep_checkpoints={self.keep_checkpoints}: keep at least 1, or a run cannot"
                " resume"
            )
        if self.sample_count < 1 or self.teacher_steps < 1:
            raise ValueError(
                f"log.sample_count={self.sample_count}, teacher_steps={self.teacher_steps}: both"
                " are at least 1"
            )
        check_seed("log.seed", self.seed)


@dataclass(frozen=True)
class EvaluateConfig:
    """What scores the finished run: a program of eval/ and its own config."""

    program: Literal["", "vbench", "image", "shapes"] = ""
    """Empty scores nothing."""
    config: str = ""

    def __post_init__(self):
        if self.program in ("vbench", "image") and not self.config:
            raise ValueError(
                f"evaluate.config={self.config!r}: {self.program} needs a config file, the ready"
                " ones are in eval/configs/"
            )
        if self.config and self.program not in ("vbench", "image"):
            raise ValueError(
                f"evaluate.config={self.config!r} with evaluate.program={self.program!r}, which"
                " reads none: name the program, vbench or image, or leave it out"
            )


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    name: str = "run"
    out: str = ""
    """Run folder; empty means runs/<name>."""
    seed: int = 0
    steps: int = 500
    max_bad_steps: int = 3
    """Stop after so many iterations in a row whose loss or gradient was not finite."""
    model: ModelConfig = ModelConfig()
    video: ClipSize = ClipSize()
    prompts: PromptConfig = PromptConfig()
    grid: GridConfig = GridConfig()
    objective: TDM = TDM()
    """Any method of distill/, by its `kind`."""
    training: Literal["lora", "full"] = "lora"
    """lora: student and fake are adapters on one frozen base; full: three whole networks."""
    lora: LoraSettings = LoraSettings()
    init: str = ""
    """A LoRA folder that the student starts from, e.g. of an earlier stage; the fake starts from
    the base in any case.
    """
    student: OptimConfig = OptimConfig()
    fake: OptimConfig = OptimConfig(lr=5e-4)
    discriminator: OptimConfig = OptimConfig(lr=5e-4)
    """Of the kind `gan`, whose heads it trains."""
    real: RealConfig = RealConfig()
    """What the kind `gan` compares with."""
    ema: float = 0.0
    """Decay of the student's averaged weights, which are what is sampled and exported; 0 is off."""
    batch: BatchConfig = BatchConfig()
    parallel: ParallelConfig = ParallelConfig()
    log: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self):
        check_seed("seed", self.seed)
        if self.name in ("", ".", "..") or any(character in self.name for character in "/\\\0"):
            raise ValueError(
                f"name={self.name!r} names the run folder and files: a name without slashes, and"
                " not empty"
            )
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: a run has at least 1 step")
        if self.max_bad_steps < 1:
            raise ValueError(
                f"max_bad_steps={self.max_bad_steps}: stopping takes at least 1 bad step"
            )
        if self.init and self.training != "lora":
            raise ValueError(
                f"init={self.init!r} is a LoRA, training={self.training!r} has none: leave one of"
                " them out"
            )
        if self.training == "full" and not self.parallel.share_base:
            raise ValueError(
                "parallel.share_base=false with training='full', where no network shares its"
                " weights: leave it out, or use training='lora'"
            )
        if self.parallel.keep_attention and self.model.attention == "xformers":
            raise ValueError(
                "parallel.keep_attention=true knows PyTorch's attention only, not"
                " model.attention='xformers': use 'sdpa', or set it to false"
            )
        if self.model.quantize != "none":
            self._check_quantize()
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: a decay is in [0, 1); 0 turns averaging off")

    def _check_quantize(self) -> None:
        parallel, chosen = self.parallel, f"model.quantize={self.model.quantize!r}"
        if self.training != "lora":
            raise ValueError(
                f"{chosen} is of a frozen base, training={self.training!r} has weights to train:"
                " use 'none' or training='lora'"
            )
        if parallel.compile:
            raise ValueError(
                f"{chosen} with parallel.compile=true: compiled blocks keep every whole weight, so"
                " nothing is saved; set one of them back"
            )
        if parallel.offload != "none":
            raise ValueError(
                f"{chosen} with parallel.offload={parallel.offload!r}, which is DeepSpeed's and not"
                " for such a base: set one of them to 'none'"
            )

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out or f"runs/{self.name}")


def check_seed(name: str, seed: int) -> None:
    """ValueError for a number that no generator takes; those next to it are used as well."""
    if abs(seed) >= 2**62:
        raise ValueError(f"{name}={seed}: a seed lies between -2^62 and 2^62")


def load_config(path: Path | str, overrides: list[str] = ()) -> RunConfig:
    """Load a run from a JSON file, or a ready config's name, and `a.b=value` overrides.

    Values are JSON, or plain strings.
    """
    path = find_config(path)
    data = read_settings(path, overrides)
    data.setdefault("name", path.stem)
    return from_dict(RunConfig, data)


def read_settings(path: Path, overrides: list[str] = ()) -> dict:
    """The JSON object of a config file with its overrides; ValueError names file and line."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8: save the file as UTF-8") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {data!r}")
    for override in overrides:
        _override(data, override)
    return data


def to_dict(config: Any) -> dict:
    """Plain JSON values, every default written out; `from_dict` gives the same config back."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, data: Any, where: str = "") -> Any:
    """Build a dataclass from JSON values; ValueError names the dotted path, the value and the rule."""
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'config'} must be a JSON object, not {data!r}")
    cls = _variant(cls, data, where)
    hints, values = typing.get_type_hints(cls), {}
    for key, value in data.items():
        dotted = f"{where}.{key}" if where else key
        if key not in hints:
            raise ValueError(f"unknown setting {dotted!r}: {_advice(cls, key, hints)}")
        values[key] = _convert(hints[key], value, dotted)
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(
            str(error) if str(error).startswith(where) else f"{where}.{error}"
        ) from None


def _variant(cls: type, data: dict, where: str) -> type:
    """The method that `kind` names; every other dataclass is what it is."""
    if cls is not TDM:
        return cls
    kind, known = data.get("kind", "tdm"), objectives()
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(
            f"{where}.kind={kind!r}: choose one of {', '.join(map(repr, sorted(known)))}"
        )
    return known[kind]


def _advice(cls: type, key: str, hints: dict) -> str:
    """What the writer of an unknown setting may have meant."""
    owners = (
        [kind for kind, method in objectives().items() if key in method.__dataclass_fields__]
        if issubclass(cls, TDM)
        else []
    )
    if owners:
        return f"it belongs to kind {' or '.join(map(repr, owners))}, this is {cls().kind!r}"
    near = difflib.get_close_matches(key, hints, 1)
    return f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(hints)}"


def _convert(kind: Any, value: Any, dotted: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, dotted)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{dotted}={value!r}: choose one of {', '.join(map(repr, options))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return (
            None
            if value is None
            else _convert(next(o for o in options if o is not type(None)), value, dotted)
        )
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{dotted}={value!r} must be a list")
        item = options[0]
        return tuple(_convert(item, one, f"{dotted}[{i}]") for i, one in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**308 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{dotted}={value!r} must be of type {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{dotted}={value!r} must be a finite number")
    return value


def _override(data: dict, text: str) -> None:
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise ValueError(f"--set {text!r}: write --set a.b=value")
    *parents, last = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ValueError(f"--set {text!r}: {parent!r} is a value, not a group of settings")
    try:
        data[last] = json.loads(value)
    except json.JSONDecodeError:
        data[last] = value
