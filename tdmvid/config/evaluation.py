"""What scores a finished student, and the configs of the evaluations themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .model import ClipSize, ModelConfig
from .ranges import ranges_of
from .rules import Rule, check_rules

LONG_SECONDS = 5.0
"""From this length on VBench's maintainers ask for VBench-Long: plain VBench scores long videos
too low.
"""
EVALUATE_RULES = (
    Rule(
        lambda evaluate: evaluate.program in ("vbench", "image") and not evaluate.config,
        "evaluate.config",
        "is missing, evaluate.program={program} needs it: name a ready one, e.g."
        " vbench_cogvideox2b or"
        " images, or a file of your own",
    ),
    Rule(
        lambda evaluate: evaluate.config and evaluate.program not in ("vbench", "image"),
        "evaluate.config",
        "has no effect with evaluate.program={program}: set the program to 'vbench' or 'image', or"
        " leave the config out",
    ),
)
TEACHER_RULES = (
    *ranges_of("teacher"),
    Rule(
        lambda teacher: teacher.use_dynamic_cfg and teacher.cfg == 1,
        "teacher.use_dynamic_cfg",
        "has no effect with teacher.cfg={cfg}, which is no guidance: leave it out, or set a"
        " guidance",
    ),
    Rule(
        lambda teacher: teacher.cfg_2 is not None and teacher.cfg == 1,
        "teacher.cfg_2",
        "has no effect with teacher.cfg={cfg}: the stock call takes that for no guidance of either"
        " expert",
    ),
    Rule(
        lambda teacher: teacher.negative and teacher.cfg == 1,
        "teacher.negative",
        "has no effect with teacher.cfg={cfg}, which is no guidance: leave it out, or set a"
        " guidance",
    ),
)
VBENCH_RULES = (
    *ranges_of("evaluation"),
    Rule(
        lambda config: config.static_filter and config.static_seeds < config.seeds,
        "static_seeds",
        "must be at least seeds={seeds}, from which the static filter picks: raise it",
    ),
)
IMAGE_RULES = (
    Rule(
        lambda config: not config.prompts,
        "prompts",
        "is missing: name a .txt, .jsonl, .csv or .parquet file",
    ),
    *ranges_of("evaluation", ("seeds", "limit", "batch", "pairs")),
    Rule(
        lambda config: "diversity" in config.metrics and config.seeds < 2,
        "seeds",
        "is too few for diversity, which compares at least 2 images of a prompt: set seeds=2, or"
        " leave it out of metrics",
    ),
    Rule(
        lambda config: config.video.frames != 1,
        "video.frames",
        "is a video, and these metrics score images: set it to 1, or score videos with `tdmvid"
        " score vbench`",
    ),
)


@dataclass(frozen=True)
class EvaluateConfig:
    """What scores the finished run: an evaluation and its own config."""

    program: Literal["", "vbench", "image", "shapes"] = ""
    """Empty scores nothing."""
    config: str = ""
    """JSON file or name of a ready evaluation, for the programs vbench and image."""

    def __post_init__(self) -> None:
        check_rules(self, EVALUATE_RULES)


@dataclass(frozen=True)
class TeacherSampling:
    """How the teacher is sampled that the student stands beside."""

    steps: int = 50
    """Sampling steps of the teacher."""
    cfg: float = 6.0
    """Guidance scale of the teacher; 1 is no guidance."""
    negative: str = ""
    """The prompt that guidance leads away from."""
    shift: float = 0.0
    """Flow shift of its times; 0 keeps that of the model's own scheduler."""
    cfg_2: float | None = None
    """Guidance of the low-noise expert of a teacher of two; None: the same."""
    use_dynamic_cfg: bool = False
    """As of CogVideoX's stock call."""

    def __post_init__(self) -> None:
        check_rules(self, TEACHER_RULES)

    @property
    def guidance(self) -> str:
        """Return the guidance in words."""
        second = "" if self.cfg_2 is None else f" and {self.cfg_2:g} by expert"
        return f"{self.cfg:g}{second}" + ", dynamic" * self.use_dynamic_cfg


@dataclass(frozen=True)
class VBenchConfig:
    """One evaluation: what is sampled, how often, and what it is scored on."""

    prompts: str = ""
    """A prompt file of your own; empty takes VBench's suite."""
    augmented: str = ""
    """A prompt file whose line i is what the model sees for prompt i of the suite."""
    dimensions: tuple[str, ...] = ()
    """Empty takes all that the prompts can be scored on."""
    seeds: int = 5
    """Videos sampled for each prompt."""
    static_filter: bool = True
    """VBench's own protocol for temporal_flickering: many videos, of which the first five without
    motion count.
    """
    static_seeds: int = 25
    """Videos sampled for each prompt of temporal_flickering, when `static_filter` is on."""
    limit: int = 0
    """Only the first so many prompts of each group of dimensions; 0 takes all."""
    model: ModelConfig = ModelConfig()
    """Empty takes the base that the student names."""
    video: ClipSize = ClipSize(49, 480, 720, 8)
    """Size of the sampled videos."""
    teacher: TeacherSampling = TeacherSampling()
    """How the teacher is sampled."""
    batch: int = 1
    """Videos sampled at a time on each rank."""
    embeddings: str = "cache/embeddings"
    """Folder in which text embeddings are cached."""
    environment: str = ".venv-vbench"
    """What eval/setup_vbench.sh made."""
    cache: str = ""
    """Where VBench's weights lie; empty takes its own default."""
    pairs: int = 6
    """How many of the best and of the worst pairs the page shows."""

    def __post_init__(self) -> None:
        check_rules(self, VBENCH_RULES)

    @property
    def custom(self) -> bool:
        """Whether the prompts are not VBench's."""
        return bool(self.prompts)

    @property
    def filtered(self) -> bool:
        """Whether temporal_flickering is measured on filtered videos; never with custom prompts."""
        return self.static_filter and not self.custom

    @property
    def long(self) -> bool:
        """Whether VBench-Long scores."""
        return self.video.frames / self.video.fps >= LONG_SECONDS


@dataclass(frozen=True)
class ImageConfig:
    """One evaluation of an image model."""

    prompts: str = ""
    """A .txt, .jsonl, .csv or .parquet file of prompts. Required."""
    column: str = "prompt"
    """The column of a table that holds the prompts."""
    limit: int = 0
    """Only the first so many prompts; 0 takes all."""
    seeds: int = 1
    """Images sampled for each prompt."""
    metrics: tuple[str, ...] = ("hps", "clip", "aesthetic", "fid")
    """Names of scoring/image_metrics/."""
    reference: str = ""
    """A folder of real images, for FID and precision and recall against them; both are measured
    against the teacher anyway.
    """
    model: ModelConfig = ModelConfig()
    """Empty takes the base that the student names."""
    video: ClipSize = ClipSize(1, 512, 512, 8)
    """Size of the sampled images; `frames` must be 1."""
    teacher: TeacherSampling = TeacherSampling(50, 7.5)
    """How the teacher is sampled."""
    batch: int = 4
    """Images sampled at a time on each rank."""
    embeddings: str = "cache/embeddings"
    """Folder in which text embeddings are cached."""
    cache: str = "cache/metrics"
    """Where the weights of the metrics lie."""
    pairs: int = 6
    """How many of the best and of the worst pairs the page shows."""

    def __post_init__(self) -> None:
        check_rules(self, IMAGE_RULES)
