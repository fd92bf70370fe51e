"""All settings of a run, and the rules between its sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from .data import BatchConfig, PromptConfig, RealConfig
from .evaluation import EvaluateConfig
from .grid import GridConfig
from .guard import ExportConfig, GuardConfig
from .log import LogConfig
from .lora import LoraSettings
from .model import ClipSize, ModelConfig
from .objectives import ObjectiveSettings, TDMSettings
from .optim import OptimConfig
from .parallel import ParallelConfig
from .paths import PathText
from .ranges import top_ranges
from .rewards import REWARD_RULES, RewardConfig
from .rules import Rule, check_rules, value_of

NAME_BYTES = 200
"""Longest name of a run. File systems allow 255 bytes, including the suffixes of file names."""
_DISCRIMINATOR = OptimConfig(lr=5e-4)


def _is_idle(dotted: str, default: Any, run: RunConfig) -> bool:
    """Return whether a setting of the discriminator is given to a method without one."""
    return "discriminator" not in run.objective.roles and value_of(run, dotted) != default


def _without_discriminator(section: str, default: RealConfig | OptimConfig) -> Iterator[Rule]:
    """Yield rules against settings of a section that only a discriminator reads."""
    for field in fields(default):
        if field.name == "cache":  # a place, which may be given for all runs
            continue
        dotted = f"{section}.{field.name}"
        yield Rule(
            partial(_is_idle, dotted, getattr(default, field.name)),
            dotted,
            "has no effect with objective.kind={objective.kind}, which has no discriminator:"
            " remove it, or use objective.kind='gan'",
        )


RULES = (
    *top_ranges(),
    Rule(
        lambda run: (
            run.name in ("", ".", "..")
            or any(c in run.name for c in "/\\\0")
            or len(run.name.encode()) > NAME_BYTES
        ),
        "name",
        f"cannot be the name of the run folder: choose a name without slashes, of at most"
        f" {NAME_BYTES} bytes",
    ),
    Rule(
        lambda run: run.init and not run.trains_lora,
        "init",
        "is a LoRA, and training={training} trains no LoRA: remove it, or use training='lora'",
    ),
    Rule(
        lambda run: run.model.adapters and not run.trains_lora,
        "training",
        "trains whole networks and cannot keep model.adapters as separate LoRAs: use 'lora', or"
        " merge them into the base first",
    ),
    Rule(
        lambda run: not run.trains_lora and not run.parallel.share_base,
        "parallel.share_base",
        "has no effect with training={training}, where networks share no weights: remove it, or use"
        " training='lora'",
    ),
    Rule(
        lambda run: run.parallel.keep_attention and run.model.attention == "xformers",
        "parallel.keep_attention",
        "supports only PyTorch's attention, not model.attention={model.attention}: set"
        " model.attention='sdpa', or parallel.keep_attention=false",
    ),
    Rule(
        lambda run: run.prompts.negative and not run.objective.guided,
        "prompts.negative",
        "has no effect with objective.cfg={objective.cfg}, which turns guidance off: remove it"
        " (--set prompts.negative=), or change objective.cfg",
    ),
    *_without_discriminator("real", RealConfig()),
    *_without_discriminator("discriminator", _DISCRIMINATOR),
    Rule(
        lambda run: not run.objective.k_condition and not run.objective.step_set,
        "objective.k_condition",
        "has no effect without objective.step_set: remove it, or list numbers of steps",
    ),
    Rule(
        lambda run: (
            isinstance(run.objective, TDMSettings)
            and run.objective.importance != "mean"
            and run.objective.fake_target == "exact"
        ),
        "objective.importance",
        "has no effect with objective.fake_target={objective.fake_target}, which needs no"
        " importance weights: use fake_target='x0_hat', or remove it",
    ),
    Rule(
        lambda run: run.guard.action == "stop" and not run.log.sample_every,
        "guard.action",
        "has no samples to compare before the last iteration with log.sample_every=0: set"
        " log.sample_every to a number of iterations, or use 'warn'",
    ),
    Rule(
        lambda run: run.export.select == "best" and run.guard.action == "off",
        "export.select",
        "needs the measures of the guard, and guard.action is 'off': set guard.action to 'warn' or"
        " 'stop', or select 'last'",
    ),
    Rule(
        lambda run: run.export.select == "best" and not run.log.sample_every,
        "export.select",
        "has only the last student to choose from with log.sample_every=0: set log.sample_every to"
        " a number of iterations, or select 'last'",
    ),
)
QUANTIZE_RULES = (
    Rule(
        lambda run: not run.trains_lora,
        "model.quantize",
        "needs a frozen base, and training={training} trains the base: use 'none', or"
        " training='lora'",
    ),
    Rule(
        lambda run: run.parallel.compile is True,
        "model.quantize",
        "saves no memory with parallel.compile={parallel.compile}, because compiled blocks keep all"
        " unquantized weights: use 'none', or parallel.compile=false",
    ),
    Rule(
        lambda run: run.parallel.offload != "none",
        "model.quantize",
        "does not work with parallel.offload={parallel.offload}: set one of them to 'none'",
    ),
)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run."""

    name: str = "run"
    """Name of the run, without slashes, at most 200 bytes. Defaults to the name of the config file.
    """
    notes: tuple[str, ...] = ()
    """Notes for readers, e.g. the sources of the values. They have no effect on the run."""
    out: PathText = ""
    """Run folder. Empty means `runs/<name>`."""
    seed: int = 0
    """Seed of all random numbers of the run."""
    steps: int = 500
    """Number of training iterations, 1 to 10,000,000."""
    max_bad_steps: int = 3
    """Stop after this many consecutive iterations with a loss or gradient that is not finite."""
    model: ModelConfig = ModelConfig()
    """Teacher model."""
    video: ClipSize = ClipSize()
    """Size of the samples."""
    prompts: PromptConfig = PromptConfig()
    """Training prompts."""
    grid: GridConfig = GridConfig()
    """Times of the student's calls."""
    objective: ObjectiveSettings = TDMSettings()
    """Distillation method, chosen by its `kind`, and its settings; see objectives/."""
    training: Literal["lora", "full"] = "lora"
    """`lora`: student and fake are adapters on one frozen base. `full`: student, fake and teacher
    are three whole networks.
    """
    lora: LoraSettings = LoraSettings()
    """LoRA adapters of student and fake."""
    init: PathText = ""
    """LoRA folder that the student starts from, e.g. the result of an earlier stage. The fake
    always starts from the base.
    """
    student: OptimConfig = OptimConfig()
    """Optimiser of the student."""
    fake: OptimConfig = OptimConfig(lr=5e-4)
    """Optimiser of the fake."""
    discriminator: OptimConfig = _DISCRIMINATOR
    """Optimiser of the discriminator heads of kind `gan`."""
    real: RealConfig = RealConfig()
    """Real videos or images for the discriminator of kind `gan`."""
    rewards: tuple[RewardConfig, ...] = ()
    """Rewards that the student follows in addition to its teacher."""
    ema: float = 0.0
    """Decay of the moving average of the student's weights, in [0, 1). The averaged weights are
    sampled and exported. 0 turns averaging off.
    """
    batch: BatchConfig = BatchConfig()
    """Batch sizes."""
    parallel: ParallelConfig = ParallelConfig()
    """Parallelism, memory savings and compilation."""
    log: LogConfig = LogConfig()
    """Checkpoints and samples."""
    guard: GuardConfig = GuardConfig()
    """Comparison of samples of student and teacher during training."""
    export: ExportConfig = ExportConfig()
    """Export at the end of the run."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation of the finished student."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)
        check_rules(self, REWARD_RULES)
        if self.model.quantize != "none":
            check_rules(self, QUANTIZE_RULES)

    @property
    def trains_lora(self) -> bool:
        """Whether LoRA adapters are trained instead of whole networks."""
        return self.training == "lora"

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the best student, as measured by the guard, is also kept."""
        wanted = self.log.checkpoint_every > 0 or self.export.select == "best"
        return wanted and self.guard.action != "off" and self.log.sample_every > 0

    @property
    def folder(self) -> Path:
        """Run folder."""
        return Path(self.out or f"runs/{self.name}")
