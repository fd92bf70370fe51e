"""Train a second judge, which no run uses as a reward: it measures what a reward did.

    python -m examples.shapes.second_judge --seed 6 --out build/second_judge.safetensors

It has a network like the embedded judge's, with other initial weights and other videos, and a
second network for the layout: whether an object is cut off by the frame, and whether two objects
touch. (The reward `shapes_clear` finds objects by their colours instead.) Both are trained on
ground truth and on the embedded teacher's reconstructions of it, never on samples. Resumable after
an interruption.

Shapes: B videos [B, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as nnf
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_number
from tdmvid.config.ranges import MILLION, Range
from tdmvid.shapes import TEACHER, layout, world
from tdmvid.shapes.judge import MASK_WIDTH, Judge, attributes, features

from .checkpoint import load, save
from .train_judge import LR, WARMUP, draw_batch, judge_loss, reconstructions
from .vae import schedule

ITERATIONS, SAVED_EVERY, POOL = 600, 25, 480
LAYOUTS = ("inside", "apart")


class LayoutJudge(nn.Module):
    """Network with 11k parameters that decides whether objects are inside the frame and apart.

    It sees one frame at a time: the masks of the two named objects, and the frame's edge. A video
    is as bad as its worst place in its worst frame.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b, kernel, stride in ((3, 16, 6, 2), (16, 32, 4, 2), (32, 32, 1, 1)):
            padding = (kernel - stride) // 2
            layers += [nn.Conv2d(a, b, kernel, stride, padding, bias=False)]
            layers += [nn.BatchNorm2d(b), nn.SiLU()]
        self.places = nn.Sequential(*layers, nn.Conv2d(32, len(LAYOUTS), 1))

    def forward(self, videos: Tensor, named: Tensor) -> Tensor:
        """Compute the logits of `LAYOUTS`.

        Args:
            videos: Videos [B, 3, F, H, W] in [-1, 1].
            named: Colours of the two named objects [B, 2]; -1 for none.

        Returns:
            Logits [B, 2].
        """
        paint = torch.tensor(list(world.COLOURS.values()), device=videos.device) * 2 - 1
        wanted = paint[named.clamp(min=0)].view(*named.shape, 3, 1, 1, 1)
        far = (videos[:, None] - wanted).square().sum(2)
        masks = torch.exp(-far / (2 * MASK_WIDTH**2)) * (named >= 0).view(-1, 2, 1, 1, 1)
        edge = torch.zeros_like(masks[:, :1])
        for side in (edge[..., 0, :], edge[..., -1, :], edge[..., 0], edge[..., -1]):
            side.fill_(1)
        frames = torch.cat([masks, edge], 1).transpose(1, 2).flatten(0, 1)  # [B F, 3, H, W]
        return -self.places(frames).flatten(2).amax(2).view(len(videos), -1, len(LAYOUTS)).amax(1)


class SecondJudge(nn.Module):
    """The two networks of the second judge."""

    def __init__(self) -> None:
        super().__init__()
        self.captions, self.layouts = Judge(), LayoutJudge()

    @torch.no_grad()
    def judge(self, videos: Tensor, things: list[tuple[world.Thing, ...]]) -> dict[str, Tensor]:
        """Judge videos.

        Args:
            videos: Videos [B, 3, F, H, W] in [-1, 1].
            things: Objects that each caption names.

        Returns:
            "features" [B, 14], and bool [B] for each of "all" (everything that the caption names),
            "inside", "apart" and "clear" (these three together).
        """
        self.eval()
        colours = torch.tensor([[t[0].colour, t[1].colour if len(t) == 2 else -1] for t in things])
        parts = [self.layouts(v, c) for v, c in zip(videos.split(32), colours.split(32))]
        said = dict(zip(LAYOUTS, (torch.cat(parts) > 0).T))
        said["apart"] |= colours[:, 1] < 0
        said["all"] = attributes(self.captions, videos, things)["all"]
        said["clear"] = said["all"] & said["inside"] & said["apart"]
        return said | {"features": features(self.captions, videos)}


def load_second_judge(path: Path) -> SecondJudge:
    """Load a trained second judge.

    Args:
        path: File of its weights.

    Returns:
        The judge, in float32.

    Raises:
        ValueError: There is no such file.
    """
    if not path.is_file():
        raise ValueError(
            f"--judge {path} does not exist: train it with"
            f" `python -m examples.shapes.second_judge --out {path}`"
        )
    judge = SecondJudge()
    judge.load_state_dict(load_file(path))
    return judge.float().eval().requires_grad_(False)


def named_colours(wanted: dict[str, Tensor]) -> Tensor:
    """Return the colours that are present, in a fixed order.

    Args:
        wanted: Targets of `draw_batch`, with "present" [B, 6].

    Returns:
        Colours [B, 2]; -1 for none.
    """
    there, colours = wanted["present"].topk(2, dim=1)
    return torch.where(there > 0, colours, -1)


def loss_of(judge: SecondJudge, videos: Tensor, wanted: dict[str, Tensor]) -> Tensor:
    """Compute the sum of the losses of both networks.

    Args:
        judge: The judge.
        videos: Videos [B, 3, F, H, W] in [-1, 1].
        wanted: Targets of `draw_batch`.

    Returns:
        The loss (scalar).
    """
    named = named_colours(wanted)
    truth = torch.stack([wanted[name] for name in LAYOUTS], 1)
    asked = torch.stack([named[:, 0] >= 0, named[:, 1] >= 0], 1)
    logits = judge.layouts(videos, named)
    layouts = nnf.binary_cross_entropy_with_logits(logits[asked], truth[asked])
    return judge_loss(judge.captions(videos)[1], wanted) + layouts


def train(work: Path, *, seed: int, iterations: int) -> SecondJudge:
    """Train the judge, or resume its training.

    Args:
        work: Folder of the training.
        seed: Seed of weights and data.
        iterations: Number of iterations.

    Returns:
        The judge.
    """
    torch.manual_seed(seed)
    judge = SecondJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=1e-2)
    work.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKLCogVideoX.from_pretrained(TEACHER / "vae", torch_dtype=torch.float32)
    pool = reconstructions(work, vae.eval().requires_grad_(False), seed, POOL)
    start = load(work / "judge.pt", judge, optimizer)
    for step in (bar := tqdm(range(start, iterations), initial=start, total=iterations)):
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step, iterations, WARMUP)
        loss = loss_of(judge.train(), *draw_batch(step, pool, seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % SAVED_EVERY == SAVED_EVERY - 1:
            bar.set_postfix(loss=f"{loss.item():.4f}")
            save(work / "judge.pt", judge, optimizer, step + 1)
    return judge.eval().requires_grad_(False)


def agreement(judge: SecondJudge, *, count: int, seed: int = 99) -> dict[str, float]:
    """Measure how often the judge is right on new ground truth with held-out captions.

    Args:
        judge: The judge.
        count: Number of videos.
        seed: Seed of captions and videos.

    Returns:
        Shares in [0, 1] of "all", "inside", "apart" and "clear".
    """
    generator = torch.Generator().manual_seed(seed)
    things = world.draw_captions(count, generator, test=True)
    scene = world.sample_scene(things, generator)
    said, masks = judge.judge(world.render(scene), things), world.cover(scene) > layout.COVER
    truth = {"inside": layout.inside(masks), "apart": layout.apart(masks)}
    truth |= {"all": torch.ones(count, dtype=torch.bool), "clear": layout.clear(masks)}
    return {name: (said[name] == value).float().mean().item() for name, value in truth.items()}


def main() -> None:
    """Train and write a judge, and print how often it is right."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=6, help="seed (the embedded judge's: 5)")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="iterations")
    parser.add_argument(
        "--out", type=Path, default=Path("build/second_judge.safetensors"), help="file to write"
    )
    args = parser.parse_args()
    check_number("--iterations", args.iterations, Range(1, MILLION, "iterations"))
    judge = train(args.out.with_suffix(".training"), seed=args.seed, iterations=args.iterations)
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, args.out)
    said = ", ".join(f"{k} {v:.1%}" for k, v in agreement(judge, count=512).items())
    print(f"{args.out}: right on new ground truth: {said}")


if __name__ == "__main__":
    run_program(main)
