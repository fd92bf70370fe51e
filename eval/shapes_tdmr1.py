"""Train a student of the embedded teacher with TDM-R1 (arXiv 2603.07700), for comparison with
rewards through the fake.

    PYTHONPATH=. python eval/shapes_tdmr1.py --out runs/tdmr1 --init runs/plain/lora \
        --reward shapes_clear --iterations 150 --set weight=2 --set normaliser=teacher

`eval/shapes_reward.py` measures the student in OUT/lora. TDM-R1 is not an objective of tdmvid: its
third adapter, the surrogate, exists only here. The rest of the run is that of
configs/shapes_4nfe.json with `rollout: "stop"`. It cannot continue after an interruption.

Shapes: B is the batch, in groups of G samples with one prompt.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import Tensor

from ablations import loops
from ablations.tdmr1 import PASSES, Preferences, Surrogate, Turns
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RewardConfig, RunConfig, load_config, to_dict
from tdmvid.data.files import write_json
from tdmvid.data.items import read_run_items
from tdmvid.rewards import Scorer
from tdmvid.roles.build import build_engine, build_role
from tdmvid.train.finalize import finalize
from tdmvid.train.run import Run

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "shapes_4nfe.json"
SETTINGS = {field.name: type(field.default) for field in fields(Preferences)}


@dataclass(frozen=True)
class Groups:
    """The prompts of each epoch, in groups."""

    run: Run
    prompts: tuple[str, ...]
    """Prompts of the training items."""
    size: int
    """Samples per group G."""
    scorer: Scorer

    def indices(self, step: int) -> list[int]:
        """Return the prompts of an iteration, which are those of its epoch.

        Args:
            step: The iteration.

        Returns:
            B indices of prompts.
        """
        count = self.run.config.batch.micro // self.size
        first = step // PASSES * count
        chosen = [self.run.order.at(first + number) for number in range(count)]
        return [index for index in chosen for _ in range(self.size)]

    def reward(self, latents: Tensor, step: int) -> Tensor:
        """Score finished samples.

        Args:
            latents: Samples [B, ...].
            step: Iteration in which they are sampled.

        Returns:
            Rewards [B].
        """
        texts = [self.prompts[index] for index in self.indices(step)]
        return self.scorer(self.run.backbone.decode(latents), texts)


def read_preferences(changes: list[str]) -> Preferences:
    """Read the items of --set.

    Args:
        changes: Items "NAME=VALUE".

    Returns:
        The settings. Groups have 8 samples, and the weight of the guidance is that of the config,
        unless they are set.

    Raises:
        ValueError: A setting does not exist, or a value cannot be read.
    """
    found: dict = {"group": 8, "guidance": load_config(CONFIG, []).objective.cfg - 1}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in SETTINGS:
            raise ValueError(f"--set {change!r}: use one of {', '.join(SETTINGS)}")
        try:
            found[name] = SETTINGS[name](value)
        except ValueError:
            raise ValueError(f"--set {change!r}: use a number") from None
    made = Preferences(**found)
    if made.normaliser not in ("direction", "teacher"):
        raise ValueError(f"--set normaliser={made.normaliser!r}: use `direction` or `teacher`")
    return made


def add_surrogate(run: Run, rate: float) -> Surrogate:
    """Build the surrogate, a third adapter on a base of its own.

    Args:
        run: The run.
        rate: Its learning rate.

    Returns:
        The surrogate, which starts as the teacher without guidance.
    """
    backbone = run.backbone
    config = replace(run.config, fake=replace(run.config.fake, lr=rate))
    network = build_role(backbone.fresh_network(), "fake", config, type(backbone))
    engine = build_engine(network, "fake", config, run.world)
    old = copy.deepcopy(network)
    return Surrogate(
        reference=run.networks["teacher"],
        network=backbone.denoiser(engine),
        old=backbone.denoiser(old),
        modules=(network, old),
        engine=engine,
        null=run.null,
    )


def configure(args: argparse.Namespace) -> RunConfig:
    """Return the settings of the run.

    Args:
        args: Options of the command.

    Returns:
        The settings.
    """
    changes = [
        f"out={args.out}",
        f"seed={args.seed}",
        f"steps={args.iterations}",
        f"init={args.init}",
        "objective.rollout=stop",
        "log.sample_every=0",
    ]
    return load_config(CONFIG, changes)


def train(args: argparse.Namespace) -> None:
    """Train, and export the student.

    Args:
        args: Options of the command.

    Raises:
        ValueError: An option is invalid.
    """
    config, preferences = configure(args), read_preferences(args.set)
    if preferences.group < 2 or config.batch.micro % preferences.group:
        raise ValueError(
            f"--set group={preferences.group}: use a divisor of the batch of {config.batch.micro},"
            " at least 2"
        )
    began = time.process_time()
    run = loops.start(config)
    items, _ = read_run_items(config, takes_images=False)
    scorer = Scorer(RewardConfig(function=args.reward))
    groups = Groups(run, tuple(item.prompt for item in items), preferences.group, scorer)
    surrogate = add_surrogate(run, args.rate)
    turns = Turns(preferences, run.config.objective, surrogate, groups.reward)
    unguided = replace(run, roles=replace(run.roles, teacher=run.networks["teacher"]))
    kept = list(loops.iterations(unguided, loops.Method(turns, groups.indices)))
    seconds = time.process_time() - began
    facts = {"settings": to_dict(preferences), "reward": args.reward, "seconds": seconds}
    write_json(config.folder / "tdmr1.json", facts | {"iterations": kept})
    print(f"processor seconds of training: {seconds:.0f}")
    finalize(run)


def main() -> None:
    """Run the command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--init", default="", help="LoRA folder of a student to start from")
    parser.add_argument("--reward", default="shapes_clear", help="a built-in reward")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate of the surrogate")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"change a setting of TDM-R1: {', '.join(SETTINGS)}",
    )
    train(parser.parse_args())


if __name__ == "__main__":
    run_program(main)
