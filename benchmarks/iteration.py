"""Compare a TDM iteration with the published loop's call pattern: network calls, seconds and peak
memory.

    python -m benchmarks.iteration
    python -m benchmarks.iteration --networks shapes --repeats 9 --json iteration.json
    python -m benchmarks.iteration --networks sd15 --whole --set batch.micro=2
    python -m benchmarks.iteration --networks cogvideox2b --layers 2 \
        --set video.frames=9 --set video.height=256 --set video.width=256

By default: the embedded teacher, small SD1.5 and PixArt, and CogVideoX-2B if there is a GPU.
`--whole` uses a network in its real size, `--layers N` uses N blocks of their real width.
`benchmarks.race` compares how close the students are to the teacher after equal time.

All patterns run alternately on the same networks, batch, grid and loss. Published, full and stop
update the weights in the same way. With a shared draw the student is compared with the fake before
its update, and a stream's states come from weights of up to K - 1 updates ago. "library defaults"
also uses the defaults of peft and diffusers for adapters and attention. The time of a row is the
mean of an iteration with the cheapest k and one with the most expensive k, which equals the mean
over k. "sum of calls" is the ratio predicted from the times of single calls. Memory is that of
tensors alive at once, in addition to networks, optimizer state and prompts.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.options import parse
from benchmarks.published import published
from benchmarks.stopwatch import MIB, alternate, peak_bytes, report
from benchmarks.untrained import SMALL, Stage, build_stage, untrained
from tdmvid.adapters.lora import tuner_layers
from tdmvid.backbones.cogvideox_parallel import JointAttention
from tdmvid.backbones.dtype import torch_dtype
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.distill.iteration import iterate
from tdmvid.distill.trajectories import Place, pick_k
from tdmvid.parallel import launch

IMAGE = [
    "video.height=128",
    "video.width=128",
    "batch.micro=8",
    "model.dtype=bfloat16",
    "lora.rank=8",
    "lora.alpha=8",
    "parallel.gradient_checkpointing=false",
]
NETWORKS = {
    "shapes": ("shapes_4nfe", ["model.attention=float32"], None),
    "sd15": ("sd15_4nfe", IMAGE, "StableDiffusionPipeline"),
    "pixart": ("pixart512_4nfe", IMAGE, "PixArtAlphaPipeline"),
    "cogvideox2b": ("cogvideox2b_4nfe", [], ""),
}
"""Config, changes, and the family of the small stand-in network ("": full size with random weights,
None: the trained one).
"""


def prepare(
    name: str, work: Path, overrides: list[str], *, whole: bool = False, layers: int = 0
) -> RunConfig:
    """Return the config of a network in the table, with its teacher on disk.

    Args:
        name: Key of `NETWORKS`.
        work: Folder for random weights.
        overrides: Further settings as in `--set`.
        whole: Whether to use a randomly initialized network in its real size.
        layers: Number of blocks of a randomly initialized network in its real width; 0 for the
            default.

    Returns:
        The config.

    Raises:
        ValueError: The network does not have `layers`.
    """
    file, changes, family = NETWORKS[name]
    if family is None and layers:
        raise ValueError(
            f"--layers={layers} has no effect on {name!r}, which is trained: choose another network"
        )
    one = "batch.total=0"  # time a micro-batch, not a step of a full run
    config = load_config(file, [one, *changes, *overrides])
    if family is None:
        return config
    return untrained(
        config,
        work,
        **({"num_layers": layers} if layers else {} if whole else SMALL.get(family, {})),
    )


def steps_of_extreme_k(stage: Stage) -> tuple[int, int]:
    """Return a step that draws k = K, which stops immediately, and one that draws k = 1, with a
    full rollout.

    Args:
        stage: Networks and random number generators.

    Returns:
        The two steps.
    """
    objective = replace(stage.config.objective, rollout="stop", draws="own")

    def drawn(step):
        return int(pick_k(Place(step), objective, stage.grid, 1, stage.streams)[0])

    return tuple(
        next(step for step in itertools.count() if drawn(step) == k) for k in (stage.grid.steps, 1)
    )


@contextmanager
def library_defaults(stage: Stage) -> Iterator[None]:
    """Use the defaults of peft and diffusers, which rely on autocast, for adapters and attention
    within this context.

    Args:
        stage: Networks to switch.
    """
    modules = [engine.module for engine in stage.engines.values()]
    layers = [layer for module in modules for layer in tuner_layers(module)]
    processors = [
        p
        for module in modules
        for p in getattr(module, "attn_processors", {}).values()
        if isinstance(p, JointAttention) and p.float32
    ]
    try:
        _set(layers, "cast_input_dtype_enabled", True)
        _set(processors, "float32", False)
        yield
    finally:
        _set(layers, "cast_input_dtype_enabled", False)
        _set(processors, "float32", True)


def _set(things: list, name: str, value: bool) -> None:
    for thing in things:
        setattr(thing, name, value)


def patterns(stage: Stage) -> dict[str, Callable[[int], None]]:
    """Return the call patterns to compare.

    Args:
        stage: Networks of the run.

    Returns:
        Functions that run the two iterations of `steps_of_extreme_k`, by name.
    """
    steps, changed = steps_of_extreme_k(stage), stage.with_objective

    def run(which: Stage, iteration, _turn: int) -> None:
        for step in steps:
            which.iterate(step, iteration)

    def plain(turn: int) -> None:
        dtype = torch_dtype(stage.config.model)
        low = dtype != torch.float32
        with (
            library_defaults(stage),
            torch.autocast(stage.backbone.device.type, dtype, enabled=low, cache_enabled=False),
        ):
            run(changed(rollout="full", draws="own"), published, turn)

    return {
        "published pattern, library defaults": plain,
        "published pattern": partial(run, changed(rollout="full", draws="own"), published),
        **{
            f"{rollout}{', shared draw' * (draws == 'shared')}": partial(
                run, changed(rollout=rollout, draws=draws), iterate
            )
            for rollout in ("stop", "full", "stream")
            for draws in ("own", "shared")
        },
    }


def calls_of(stage: Stage, call: Callable[[int], None]) -> str:
    """Count the forward and backward passes of one iteration in whole batches.

    Args:
        stage: Networks of the run.
        call: Runs two iterations.

    Returns:
        Text such as "6.5F 2B".
    """
    networks = [stage.roles.student, stage.roles.fake, stage.roles.teacher.denoiser]
    graded: list[int] = []

    def seen(module, args, out):
        return graded.append(1) if out[0].requires_grad else None

    hooks = [engine.module.register_forward_hook(seen) for engine in stage.engines.values()]
    before = sum(network.evaluated for network in networks)
    call(0)
    for hook in hooks:
        hook.remove()
    forwards = (
        (sum(network.evaluated for network in networks) - before) / stage.config.batch.micro / 2
    )
    return f"{forwards:g}F {len(graded) / 2:g}B"


def calls_alone(stage: Stage) -> dict[str, Callable[[int], None]]:
    """Return the calls that iterations consist of. "branch" is half of a guided pair.

    Args:
        stage: Networks of the run.

    Returns:
        Functions by name.
    """

    @torch.no_grad()
    def forward(role: str, _turn: int, of: Stage = stage) -> None:
        of.call(role)

    def step(role: str, _turn: int) -> None:
        for _ in stage.conds:
            stage.engines[role].backward(stage.call(role).square().mean())
        stage.engines[role].step(skip=True)

    branch = replace(stage, roles=replace(stage.roles, teacher=stage.roles.teacher.denoiser))
    return {
        "student": partial(forward, "student"),
        "fake": partial(forward, "fake"),
        "teacher": partial(forward, "teacher"),
        "branch": partial(forward, "teacher", of=branch),
        "student step": partial(step, "student"),
        "fake step": partial(step, "fake"),
    }


def sum_of_calls(name: str, alone: dict[str, float], steps: int) -> float:
    """Return the time that the calls of a pattern take individually.

    Args:
        name: Name of the pattern.
        alone: Seconds of each call.
        steps: Number of sampling steps K.

    Returns:
        Seconds of an iteration.
    """
    if name.startswith("published"):
        counts = {"student": steps + 1, "branch": 3, "fake": 1}
    else:
        rollout, _, shared = name.partition(", ")
        walked = {"stop": (steps - 1) / 2, "full": steps - 1, "stream": 0}[rollout]
        counts = {"student": walked, "teacher": 1, "fake": 0 if shared else 1}
    counts |= {"student step": 1, "fake step": 1}
    return sum(count * alone[call] for call, count in counts.items())


def compare(config: RunConfig, world: launch.World, repeats: int) -> list[list[object]]:
    """Measure all patterns. Ratios are relative to the published pattern on the same networks.

    Args:
        config: The run.
        world: Processes of the run.
        repeats: Number of timed rounds.

    Returns:
        One row per pattern, with the columns of `HEAD`.
    """
    stage = build_stage(config, world)
    calls = patterns(stage)
    counted = {name: calls_of(stage, call) for name, call in calls.items()}
    times = alternate(calls, repeats=repeats, device=world.device)
    single = alternate(calls_alone(stage), repeats=repeats, device=world.device)
    alone = {name: clock.seconds for name, clock in single.items()}
    sums = {name: sum_of_calls(name, alone, stage.grid.steps) for name in calls}
    memory = {name: peak_bytes(lambda: call(0), world.device) for name, call in calls.items()}  # noqa: B023
    base = "published pattern"
    return [
        [
            name,
            counted[name],
            times[name].seconds / 2,
            times[name].seconds / times[base].seconds,
            sums[name] / sums[base],
            times[name].wall / times[base].wall,
            f"{memory[name] / MIB:.0f} MiB",
            memory[name] / memory[base],
            times[name].spread,
        ]
        for name in calls
    ]


HEAD = [
    "iteration",
    "calls",
    "seconds",
    "ratio",
    "sum of calls",
    "ratio, wall clock",
    "peak memory",
    "memory ratio",
    "spread",
]


def arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=[*NETWORKS],
        help="default: shapes sd15 pixart, with a GPU also cogvideox2b",
    )
    parser.add_argument(
        "--whole", action="store_true", help="use SD1.5 and PixArt in their real size"
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=0,
        help="use transformers of their real width with this many blocks and random weights",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting of every network's config",
    )
    parser.add_argument("--repeats", type=int, default=5, help="number of timed rounds")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("cache/untrained"),
        help="folder for random weights, which are written once",
    )
    parser.add_argument("--json", type=Path, help="add the results to this file")
    return parse(parser)


def main() -> None:
    """Compare the patterns on every chosen network."""
    args = arguments()
    torch.set_num_threads(1)
    world = launch.start("none")
    names = args.networks or [
        name for name in NETWORKS if name != "cogvideox2b" or world.device.type == "cuda"
    ]
    configs = {  # all of them before the first is measured
        name: prepare(name, args.work, args.set, whole=args.whole, layers=args.layers)
        for name in names
    }
    for name, config in configs.items():
        size = f", {args.layers} blocks" if args.layers else ", whole" if args.whole else ""
        title = (
            f"{name}{size}: {config.model.dtype}, batch {config.batch.micro}, LoRA rank"
            f" {config.lora.rank}, K = {config.grid.steps}"
        )
        report(
            title, HEAD, compare(config, world, args.repeats), device=world.device, path=args.json
        )


if __name__ == "__main__":
    run_program(main)
