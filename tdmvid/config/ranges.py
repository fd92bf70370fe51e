"""Allowed ranges of all numbers that users give: settings in files and options of commands.

The dataclass of a section checks its ranges first (`ranges_of`), so other rules never see a number
that would make them hang. Messages use the setting names of this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .rules import Rule, short, value_of

MILLION, BILLION = 10**6, 10**9
SEEDS = 2**62 - 1
"""Largest seed. Generators of torch take 64 bits, and neighbouring seeds are also used."""
LONGEST_LIST = 1000
"""Largest number of entries in a setting."""


@dataclass(frozen=True)
class Range:
    """Allowed range of a number."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    unit: str = ""
    """Unit, and meaning of the smallest value, e.g. "prompts; 0 uses all"."""
    open: str = ""
    """Bound that is excluded from the range: "low", "high", or "" for neither."""

    def holds(self, value: float) -> bool:
        """Check whether a number is in the range.

        Args:
            value: The number.

        Returns:
            True if it is in the range; False otherwise, and for NaN.
        """
        above = self.low < value if self.open == "low" else self.low <= value
        below = value < self.high if self.open == "high" else value <= self.high
        return above and below

    def __str__(self) -> str:
        low, high = f"{self.low:,}", f"{self.high:,}"
        if self.open:
            first = "above" if self.open == "low" else "at least"
            last = "below" if self.open == "high" else "at most"
            text = f"{first} {low} and {last} {high}"
        else:
            text = f"between {low} and {high}"
        return text + (self.unit if self.unit.startswith(";") else f" {self.unit}".rstrip())


SEED = Range(-SEEDS, SEEDS)
STEPS = Range(1, 1000, "network calls")
GUIDANCE = Range(1, 1000, "(guidance scale); 1 means no guidance")
"""Below 1, diffusers' pipelines compute no guidance."""
FRACTION = Range(0, 1, open="high")
POSITIVE = Range(0, MILLION, open="low")
SHIFT = Range(0, 1000, "(flow shift); 1 gives an even grid", open="low")
EVERY = Range(0, BILLION, "iterations; 0 turns it off")
FILES = Range(0, BILLION, "files; 0 uses all")
PROMPTS = Range(0, BILLION, "prompts; 0 uses all")
BATCH = Range(1, 4096, "samples")

SETTINGS: dict[str, Range] = {
    "seed": SEED,
    "steps": Range(1, 10 * MILLION, "iterations"),
    "max_bad_steps": Range(1, 10 * MILLION, "iterations"),
    "ema": Range(0, 1, "(a decay); 0 turns averaging off", open="high"),
    "video.frames": Range(1, 10_000, "frames"),
    "video.height": Range(1, 16_384, "pixels"),
    "video.width": Range(1, 16_384, "pixels"),
    "video.fps": Range(1, 1000, "frames per second"),
    "prompts.limit": PROMPTS,
    "real.limit": FILES,
    "grid.steps": STEPS,
    "grid.start": Range(0, 1, "(a time)", open="low"),
    "grid.shift": SHIFT,
    "grid.timesteps": Range(0, MILLION, "(timesteps of the network)"),
    "model.guidance": Range(0, 1000, "(guidance scale)"),
    "objective.cfg": GUIDANCE,
    "objective.cfg_interval": Range(0, 1, "(times)"),
    "objective.cfg_2": GUIDANCE,
    "objective.step_set": STEPS,
    "objective.margin_low": FRACTION,
    "objective.margin_high": FRACTION,
    "objective.fresh_noise": Range(0, 1, "; 0 adds no limit to the margins", open="high"),
    "objective.huber_c": POSITIVE,
    "objective.snr_ceiling": POSITIVE,
    "objective.fake_updates": Range(1, 1000, "updates in each iteration"),
    "objective.weight": Range(0, MILLION, "; 0 trains only the discriminator"),
    "lora.rank": Range(1, 4096),
    "lora.alpha": Range(0, MILLION, "; usually the rank", open="low"),
    "rewards.strength": Range(-1000, 1000, "(as in exp(strength x reward))"),
    "rewards.floor": Range(0, MILLION, open="low"),
    "rewards.warmup": Range(0, 10 * MILLION, "iterations; 0 turns the warm-up off"),
    "rewards.frames": Range(0, 10_000, "frames; 0 is all"),
    "rewards.timeout": Range(0, MILLION, "seconds; 0 waits without limit"),
    "rewards.deviation_prompts": Range(1, 10_000, "prompts"),
    "rewards.deviation_samples": Range(2, 10_000, "samples per prompt"),
    "optim.lr": Range(0, 1000, open="low"),
    "optim.betas": FRACTION,
    "optim.weight_decay": Range(0, 1000, "; 0 turns it off"),
    "optim.clip": Range(0, BILLION, "(gradient norm); 0 turns clipping off"),
    "optim.warmup": Range(0, 10 * MILLION, "iterations; 0 turns the warm-up off"),
    "batch.micro": BATCH,
    "batch.accumulation": Range(1, 65_536, "micro-batches"),
    "batch.total": Range(
        0, 16_777_216, "samples; 0 uses micro, accumulation and the number of ranks"
    ),
    "parallel.sequence": Range(1, 1024, "ranks; 1 keeps whole sequences on each rank"),
    "parallel.timeout_minutes": Range(0, 525_600, "minutes (one year)", open="low"),
    "log.checkpoint_every": EVERY,
    "log.sample_every": EVERY,
    "log.keep_checkpoints": Range(1, MILLION, "checkpoints; a run resumes from the latest"),
    "log.sample_count": Range(1, 10_000, "samples"),
    "log.seed": SEED,
    "log.teacher_steps": STEPS,
    "log.teacher_shift": SHIFT,
    "guard.cfg": Range(0, 1000, "(guidance scale); 0 uses objective.cfg"),
    "guard.patience": Range(
        0, BILLION, "iterations; 0 skips the comparison with the untrained network"
    ),
    "guard.fake_rate": Range(0, MILLION, "times student.lr; 0 does not check it"),
    "guard.prompt_uses": Range(0, BILLION, "uses of each prompt; 0 does not check them"),
    "guard.pairs": Range(0, 10_000, "prompts; 0 does not compare seeds"),
    "adapter.scale": Range(-1000, 1000, "(scale of a LoRA); 1 keeps the scale of the file"),
    "adapter.scale_2": Range(-1000, 1000, "(scale of a LoRA); 1 keeps the scale of the file"),
    "teacher.steps": STEPS,
    "teacher.cfg": GUIDANCE,
    "teacher.cfg_2": GUIDANCE,
    "teacher.shift": Range(0, 1000, "(flow shift); 0 uses that of the model's scheduler"),
    "evaluation.seeds": Range(1, 1000, "seeds per prompt"),
    "evaluation.static_seeds": Range(0, 1000, "seeds per prompt"),
    "evaluation.limit": Range(0, BILLION, "prompts; 0 uses all"),
    "evaluation.batch": BATCH,
    "evaluation.pairs": Range(0, 1000, "pairs; 0 shows none"),
}
"""Dotted name of a setting -> its range. For a list, the range applies to each entry.

Sections that occur in several places (`optim`, `teacher`, `evaluation`) or in a list (`adapter`,
`rewards`) get the rest of their name from `parse.from_dict`.
"""
UNNAMED = ("optim", "teacher", "evaluation", "adapter", "rewards")
"""Sections that messages leave out of the names of their settings."""
OPTIONS: dict[str, Range] = {
    "steps": STEPS,
    "cfg": GUIDANCE,
    "cfg_2": GUIDANCE,
    "shift": Range(0, 1000, "(flow shift); 0 keeps that of the model"),
    "scale": Range(0, 1000, "(scale of a LoRA); 1 keeps the scale of the file", open="low"),
    "fps": SETTINGS["video.fps"],
    "batch": BATCH,
    "seeds": Range(1, 1000, "seeds"),
    "seed": SEED,
    "limit": FILES,
    "pairs": Range(0, BILLION, "pairs; 0 uses all"),
    "rank": Range(0, 4096, "; 0 writes the whole network"),
    "tolerance": Range(0, 1000, "(relative difference); 0 uses that of the dtypes"),
    "ranks": Range(1, 65_536, "ranks"),
    "nodes": Range(1, 65_536, "nodes"),
    "gpus": Range(1, 1024, "devices per node"),
    "tflops": Range(0, MILLION, "TFLOP/s", open="low"),
    "bandwidth": Range(0, MILLION, "TB/s", open="low"),
    "seconds": Range(0, MILLION, "seconds per iteration", open="low"),
    "device_memory": Range(0, MILLION, "GiB; 0 skips the check"),
    "repeats": Range(1, MILLION, "calls"),
    "guidance": SETTINGS["model.guidance"],
    "teacher_steps": STEPS,
    "count": Range(1, MILLION, "samples"),
    "neighbours": Range(1, 1000, "neighbours"),
    "captions": Range(1, MILLION, "captions"),
    "reference": Range(1, MILLION, "videos"),
}
"""Name of a command line option -> its range. `cli.main` checks them for all commands."""


def ranges_of(section: str, settings: Iterable[str] = ()) -> tuple[Rule, ...]:
    """Make the range rules of a section.

    Args:
        section: Name of the section in `SETTINGS`.
        settings: Names of settings of the section; empty for all.

    Returns:
        The rules: two per setting, its range and the length of a list.
    """
    names = [f"{section}.{name}" for name in settings] or [
        name for name in SETTINGS if name.startswith(f"{section}.")
    ]
    return tuple(rule for name in names for rule in _rules(name, section))


def top_ranges() -> tuple[Rule, ...]:
    """Make the range rules of the settings that are in no section.

    Returns:
        The rules: two per setting.
    """
    return tuple(rule for name in SETTINGS if "." not in name for rule in _rules(name, ""))


def check_options(options: dict[str, Any]) -> None:
    """Check the numbers among the options of a command.

    Args:
        options: Name -> value, as argparse returns them.

    Raises:
        ValueError: If a number is outside its range.
    """
    for name, allowed in OPTIONS.items():
        value = options.get(name)
        if not all(allowed.holds(one) for one in _numbers(value)):
            raise ValueError(f"--{name.replace('_', '-')}={short(value)} must be {allowed}")


def check_number(name: str, value: float, allowed: Range) -> None:
    """Check one number.

    Args:
        name: Name of the setting, for the message.
        value: The number.
        allowed: Its range.

    Raises:
        ValueError: If the number is outside the range.
    """
    if not allowed.holds(value):
        raise ValueError(f"{name}={short(value)} must be {allowed}")


def _rules(name: str, section: str) -> Iterator[Rule]:
    """Yield the two rules of a setting: the length of a list, and the range."""
    allowed = SETTINGS[name]
    setting = name.removeprefix(f"{section}.") if section in UNNAMED else name

    def outside(settings: Any) -> bool:
        return not all(allowed.holds(one) for one in _numbers(value_of(settings, setting)))

    def too_long(settings: Any) -> bool:
        return len(list(_numbers(value_of(settings, setting)))) > LONGEST_LIST

    yield Rule(too_long, setting, f"has more than {LONGEST_LIST} entries: list fewer")
    yield Rule(outside, setting, f"must be {allowed}")


def _numbers(value: Any) -> Iterator[float]:
    """Yield the numbers in a value: the value itself, or the entries of a (nested) list."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
