"""Settings of evaluations, and of the evaluation at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .model import ClipSize, ModelConfig
from .paths import PathText
from .ranges import ranges_of
from .rules import Rule, check_rules

LONG_SECONDS = 5.0
"""Length in seconds from which VBench-Long is used.

The maintainers of VBench ask for it, because plain VBench scores long videos too low.
"""
EVALUATE_RULES = (
    Rule(
        lambda evaluate: evaluate.program in ("vbench", "image") and not evaluate.config,
        "evaluate.config",
        "is missing, and evaluate.program={program} needs it: use a built-in config, e.g."
        " vbench_cogvideox2b or images, or your own file",
    ),
    Rule(
        lambda evaluate: evaluate.config and evaluate.program not in ("vbench", "image"),
        "evaluate.config",
        "has no effect with evaluate.program={program}: set evaluate.program to 'vbench' or"
        " 'image', or remove evaluate.config",
    ),
)
TEACHER_RULES = (
    *ranges_of("teacher"),
    Rule(
        lambda teacher: teacher.use_dynamic_cfg and teacher.cfg == 1,
        "teacher.use_dynamic_cfg",
        "has no effect with teacher.cfg={cfg}, which turns guidance off: remove it, or change"
        " teacher.cfg",
    ),
    Rule(
        lambda teacher: teacher.cfg_2 is not None and teacher.cfg == 1,
        "teacher.cfg_2",
        "has no effect with teacher.cfg={cfg}, which turns guidance off for both experts in the"
        " diffusers pipeline: remove it, or change teacher.cfg",
    ),
    Rule(
        lambda teacher: teacher.negative and teacher.cfg == 1,
        "teacher.negative",
        "has no effect with teacher.cfg={cfg}, which turns guidance off: remove it, or change"
        " teacher.cfg",
    ),
)
VBENCH_RULES = (
    *ranges_of("evaluation"),
    Rule(
        lambda config: config.suite == "i2v" and not (config.images or config.prompts),
        "images",
        "is missing: set it to the folder vbench2_beta_i2v of VBench's repository with the image"
        " suite in its data/, or set prompts to a table with the columns prompt and image",
    ),
    Rule(
        lambda config: config.images and (config.suite != "i2v" or config.prompts),
        "images",
        "has no effect with suite={suite} and prompts={prompts}: it is VBench's image suite;"
        " remove it, or set suite='i2v' without prompts",
    ),
    Rule(
        lambda config: config.static_filter and config.static_seeds < config.seeds,
        "static_seeds",
        "must be at least seeds={seeds}, because the static filter selects among these videos:"
        " raise it",
    ),
)
IMAGE_RULES = (
    Rule(
        lambda config: not config.prompts,
        "prompts",
        "is missing: set it to a .txt, .jsonl, .csv or .parquet file",
    ),
    *ranges_of("evaluation", ("seeds", "limit", "batch", "pairs")),
    Rule(
        lambda config: "diversity" in config.metrics and config.seeds < 2,
        "seeds",
        "is too few for the metric 'diversity', which compares at least 2 images of a prompt: set"
        " seeds=2, or remove 'diversity' from metrics",
    ),
    Rule(
        lambda config: config.video.frames != 1,
        "video.frames",
        "means a video, but these metrics score images: set it to 1, or score videos with `tdmvid"
        " score vbench`",
    ),
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation at the end of a run."""

    program: Literal["", "vbench", "image", "shapes"] = ""
    """Evaluation to run: `vbench` (videos), `image` (images) or `shapes` (the embedded teacher).
    Empty runs none.
    """
    config: PathText = ""
    """Config of the evaluation for `vbench` and `image`: a JSON file, or the name of a built-in
    one.
    """

    def __post_init__(self) -> None:
        check_rules(self, EVALUATE_RULES)


@dataclass(frozen=True)
class TeacherSampling:
    """Sampling of the teacher that an evaluation compares with the student."""

    steps: int = 50
    """Number of steps, 1 to 1000."""
    cfg: float = 6.0
    """Classifier-free guidance scale, 1 to 1000. 1 means no guidance."""
    negative: str = ""
    """Negative prompt."""
    shift: float = 0.0
    """Flow shift of the times, 0 or more. 0 uses the shift of the model's own scheduler."""
    cfg_2: float | None = None
    """Guidance scale of the low-noise expert of a teacher with two experts, 1 to 1000. `null` uses
    `cfg` for both experts.
    """
    use_dynamic_cfg: bool = False
    """Vary the guidance scale with time, as `use_dynamic_cfg` of the CogVideoX pipeline does."""

    def __post_init__(self) -> None:
        check_rules(self, TEACHER_RULES)

    @property
    def guidance(self) -> str:
        """Guidance as text, e.g. "6" or "4 and 3 by expert"."""
        second = "" if self.cfg_2 is None else f" and {self.cfg_2:g} by expert"
        return f"{self.cfg:g}{second}" + ", dynamic" * self.use_dynamic_cfg


@dataclass(frozen=True)
class VBenchConfig:
    """Evaluation of a video model with VBench."""

    suite: Literal["t2v", "i2v"] = "t2v"
    """Benchmark: `t2v` is VBench, for models that take a prompt; `i2v` is VBench-I2V, for models
    that start from an image.
    """
    prompts: PathText = ""
    """Your own prompt file. Empty uses the prompt suite of VBench. With `suite=i2v` it is a table
    with the columns prompt and image, or a folder of videos or images with captions beside them.
    The first frame of a video is used.
    """
    images: PathText = ""
    """Folder `vbench2_beta_i2v` of VBench's repository, with the image suite in its `data/crop`.
    Only for `suite=i2v` without `prompts`.
    """
    augmented: PathText = ""
    """Prompt file with augmented prompts: the model gets line i instead of prompt i of the suite or
    of `prompts`. VBench reads the latter from file names, so they must be short.
    """
    dimensions: tuple[str, ...] = ()
    """VBench dimensions to score. An empty list uses all dimensions that the prompts support."""
    seeds: int = 5
    """Videos per prompt, 1 to 1000."""
    static_filter: bool = True
    """Use VBench's protocol for temporal_flickering: sample `static_seeds` videos per prompt and
    score the first five without motion. Never used with your own prompts.
    """
    static_seeds: int = 25
    """Videos per prompt of temporal_flickering with `static_filter`, at least `seeds`."""
    limit: int = 0
    """Number of prompts of each group of dimensions to use, from the first. 0 uses all."""
    model: ModelConfig = ModelConfig()
    """Base model. An empty path uses the base that the student was distilled from."""
    video: ClipSize = ClipSize(49, 480, 720, 8)
    """Size of the videos. VBench-Long is used from 5 seconds on."""
    teacher: TeacherSampling = TeacherSampling()
    """Sampling of the teacher."""
    batch: int = 1
    """Videos sampled at once on each rank, 1 to 4096."""
    embeddings: PathText = "cache/embeddings"
    """Folder in which prompt embeddings are cached."""
    environment: PathText = ".venv-vbench"
    """Virtual environment of VBench, made by eval/setup_vbench.sh."""
    cache: PathText = ""
    """Folder of VBench's weights. Empty uses VBench's default."""
    pairs: int = 6
    """Number of best pairs, and of worst pairs, that the result page shows."""

    def __post_init__(self) -> None:
        check_rules(self, VBENCH_RULES)

    @property
    def custom(self) -> bool:
        """Whether the prompts are your own instead of VBench's."""
        return bool(self.prompts)

    @property
    def filtered(self) -> bool:
        """Whether temporal_flickering is scored on filtered videos; only with VBench's prompts."""
        return self.static_filter and not self.custom and self.suite == "t2v"

    @property
    def long(self) -> bool:
        """Whether VBench-Long is used. VBench-I2V has no version of its own for long videos."""
        return self.suite == "t2v" and self.video.frames / self.video.fps >= LONG_SECONDS


@dataclass(frozen=True)
class ImageConfig:
    """Evaluation of an image model."""

    prompts: PathText = ""
    """Prompt file: .txt, .jsonl, .csv or .parquet. Required."""
    column: str = "prompt"
    """Column of a table that holds the prompts."""
    limit: int = 0
    """Number of prompts to use, from the first. 0 uses all."""
    seeds: int = 1
    """Images per prompt, 1 to 1000."""
    metrics: tuple[str, ...] = ("hps", "clip", "aesthetic", "fid")
    """Names of the metrics; see scoring/image_metrics/."""
    reference: PathText = ""
    """Folder of real images, for FID, precision and recall against them. These metrics are also
    measured against the teacher in any case.
    """
    model: ModelConfig = ModelConfig()
    """Base model. An empty path uses the base that the student was distilled from."""
    video: ClipSize = ClipSize(1, 512, 512, 8)
    """Size of the images; `frames` must be 1."""
    teacher: TeacherSampling = TeacherSampling(50, 7.5)
    """Sampling of the teacher."""
    batch: int = 4
    """Images sampled at once on each rank, 1 to 4096."""
    embeddings: PathText = "cache/embeddings"
    """Folder in which prompt embeddings are cached."""
    cache: PathText = "cache/metrics"
    """Folder of the weights of the metrics."""
    pairs: int = 6
    """Number of best pairs, and of worst pairs, that the result page shows."""

    def __post_init__(self) -> None:
        check_rules(self, IMAGE_RULES)
