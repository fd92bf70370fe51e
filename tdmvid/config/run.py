"""One run: all settings of its parts, and the rules between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from .ranges import top_ranges
from .rewards import REWARD_RULES, RewardConfig
from .rules import Rule, check_rules

NAME_BYTES = 200
"""Longest name of a run; file systems allow 255 bytes with what is added."""
RULES = (
    *top_ranges(),
    Rule(
        lambda run: (
            run.name in ("", ".", "..")
            or any(c in run.name for c in "/\\\0")
            or len(run.name.encode()) > NAME_BYTES
        ),
        "name",
        f"cannot name the run folder and its files: choose a name without slashes, of at most"
        f" {NAME_BYTES} bytes",
    ),
    Rule(
        lambda run: run.init and not run.trains_lora,
        "init",
        "names a LoRA, which training={training} does not have: leave it out, or use"
        " training='lora'",
    ),
    Rule(
        lambda run: run.model.adapters and not run.trains_lora,
        "training",
        "trains whole networks, in which model.adapters would not stay LoRAs of their own: use"
        " 'lora', or merge them into the base first",
    ),
    Rule(
        lambda run: not run.trains_lora and not run.parallel.share_base,
        "parallel.share_base",
        "has no effect with training={training}, where no networks share weights: leave it out, or"
        " use training='lora'",
    ),
    Rule(
        lambda run: run.parallel.keep_attention and run.model.attention == "xformers",
        "parallel.keep_attention",
        "supports PyTorch's attention only, not model.attention={model.attention}: use 'sdpa', or"
        " set it to false",
    ),
    Rule(
        lambda run: run.prompts.negative and not run.objective.guided,
        "prompts.negative",
        "has no effect with objective.cfg={objective.cfg}, which is no guidance: leave it out"
        " (--set prompts.negative=), or set a guidance",
    ),
    Rule(
        lambda run: run.guard.action == "stop" and not run.log.sample_every,
        "guard.action",
        "has nothing to compare before the last iteration with log.sample_every=0: set that to a"
        " number of iterations, or use 'warn'",
    ),
    Rule(
        lambda run: run.export.select == "best" and run.guard.action == "off",
        "export.select",
        "needs the guard's measures, and guard.action is 'off': use 'warn' or 'stop', or select"
        " 'last'",
    ),
    Rule(
        lambda run: run.export.select == "best" and not run.log.sample_every,
        "export.select",
        "has one student to choose from with log.sample_every=0: set that to a number of"
        " iterations, or select 'last'",
    ),
)
QUANTIZE_RULES = (
    Rule(
        lambda run: not run.trains_lora,
        "model.quantize",
        "needs a frozen base, and training={training} trains its weights: use 'none', or"
        " training='lora'",
    ),
    Rule(
        lambda run: run.parallel.compile is True,
        "model.quantize",
        "saves nothing with parallel.compile={parallel.compile}, as compiled blocks keep every"
        " unquantized weight: use 'none', or compile=false",
    ),
    Rule(
        lambda run: run.parallel.offload != "none",
        "model.quantize",
        "does not work with parallel.offload={parallel.offload}: set one of them to 'none'",
    ),
)


@dataclass(frozen=True)
class RunConfig:
    """One run."""

    name: str = "run"
    """Name of the run; if it is not set, the name of the config file."""
    notes: tuple[str, ...] = ()
    """Where the values come from, in sentences for readers; without effect on the run."""
    out: str = ""
    """Run folder; empty means runs/<name>."""
    seed: int = 0
    """Seed of all random numbers of the run."""
    steps: int = 500
    """Number of training iterations."""
    max_bad_steps: int = 3
    """Stop after so many iterations in a row whose loss or gradient was not finite."""
    model: ModelConfig = ModelConfig()
    """The teacher."""
    video: ClipSize = ClipSize()
    """Size of what is generated."""
    prompts: PromptConfig = PromptConfig()
    """Training prompts."""
    grid: GridConfig = GridConfig()
    """The times at which the student is called."""
    objective: ObjectiveSettings = TDMSettings()
    """Settings of any method, by its `kind`; see objectives/."""
    training: Literal["lora", "full"] = "lora"
    """lora: student and fake are adapters on one frozen base; full: three whole networks."""
    lora: LoraSettings = LoraSettings()
    """Shape of the LoRAs of student and fake."""
    init: str = ""
    """A LoRA folder that the student starts from, e.g. of an earlier stage; the fake starts from
    the base in any case.
    """
    student: OptimConfig = OptimConfig()
    """Optimiser of the student."""
    fake: OptimConfig = OptimConfig(lr=5e-4)
    """Optimiser of the fake score network."""
    discriminator: OptimConfig = OptimConfig(lr=5e-4)
    """Of the kind `gan`, whose heads it trains."""
    real: RealConfig = RealConfig()
    """What the kind `gan` compares with."""
    rewards: tuple[RewardConfig, ...] = ()
    """What the student is to follow beside its teacher."""
    ema: float = 0.0
    """Decay of the student's averaged weights, which are what is sampled and exported; 0 is off."""
    batch: BatchConfig = BatchConfig()
    """Samples of an optimiser step."""
    parallel: ParallelConfig = ParallelConfig()
    """How the work is spread over devices."""
    log: LogConfig = LogConfig()
    """Checkpoints and samples during training."""
    guard: GuardConfig = GuardConfig()
    """Comparison of the student's samples with the teacher's."""
    export: ExportConfig = ExportConfig()
    """Which student is exported."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Scores of the finished student."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)
        check_rules(self, REWARD_RULES)
        if self.model.quantize != "none":
            check_rules(self, QUANTIZE_RULES)

    @property
    def trains_lora(self) -> bool:
        """Whether adapters are trained, not whole networks."""
        return self.training == "lora"

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint of the best student by the guard is kept beside the newest."""
        wanted = self.log.checkpoint_every > 0 or self.export.select == "best"
        return wanted and self.guard.action != "off" and self.log.sample_every > 0

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out or f"runs/{self.name}")
