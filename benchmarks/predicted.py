"""Predict how training scales to hundreds of GPUs, with the time model of `tdmvid plan`.

    python -m benchmarks.predicted

Writes docs/scaling.md and docs/scaling.svg. Nothing is measured, and no GPU is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.predicted_plot import draw
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.data.files import write_text
from tdmvid.plan import duration
from tdmvid.plan.describe_layouts import layout_limit
from tdmvid.plan.devices import DEVICES
from tdmvid.plan.duration import predict_iteration
from tdmvid.plan.layouts import find_layouts, plan_layout
from tdmvid.plan.plan import Plan
from tdmvid.plan.price import Terms
from tdmvid.plan.units import number

MODELS = {
    "CogVideoX-2B": "cogvideox2b_4nfe",
    "CogVideoX-5B": "cogvideox5b_4nfe",
    "Wan 14B": "wan14b_4nfe",
}
NODE = 8
COUNTS = (1, 8, 16, 32, 64, 128, 256, 512)
LOW = 0.8
"""Share of linear scaling below which a verdict says that a model does not scale."""
FIXED = 64
"""Global batch, in videos, of the case with a fixed batch."""
HEAD = (
    "GPUs",
    "videos per iteration",
    "layout",
    "s",
    "videos/s",
    "of linear",
    "GB sent",
    "sending",
)


PAGE = """\
# Scaling: a prediction, not a measurement

One figure on this page was measured on a GPU: the rate of an H200's matrix products, under
"What is assumed". All others are computed. `python -m benchmarks.predicted` writes the page. It
plans the ready configs on 1 to {most} x {device.name}, {node} in a node, and prices each plan as
`tdmvid plan --nodes N --gpus {node}` does.

![predicted throughput and traffic](scaling.svg)

## Where scaling stops, and why

{verdicts}

For all of them:

* **One video per GPU.** Scaling does not stop within these numbers. Student and fake are adapters,
  so gradients are a few hundred MB. A ring sends them in milliseconds at any number of ranks. But
  the batch grows with the GPUs. Whether fewer iterations are then enough is not modelled.
* **A fixed batch of {fixed}.** With more GPUs, a GPU first has fewer videos, then a share of one.
  Only the {node} GPUs of a node may share a video, so {end} GPUs are the limit. `batch.total` of
  the ready configs is 8, for which the limit is 64.
* **Sharing a video.** These GPUs exchange queries, keys, values and outputs four times per block.
  Nothing hides that. Each also computes padded heads and the layers outside the blocks.
* **ZeRO-3** sends the same bytes at any number of ranks, but in a ring with more steps, so its
  latency grows. It is needed only if the whole base does not fit.

## What is assumed

* **Data sheet** ({device.sheet}): {device.tflops:g} TFLOP/s, {device.bandwidth:g} TB/s,
  {device.link:g} GB/s of NVLink in one direction. The network has {device.network:g} GB/s per GPU,
  as in a DGX.
* **Matrix products and attention** run at {matrix} of the sheet's dense peak. An H200 was measured
  at 788 TFLOP/s for large bfloat16 products, 80 % of it. CogVideoX-2B is estimated, not measured,
  to reach 55 to 60 % of that with all its other kernels.
* **All other kernels** read and write what a trace of the network counts, at {memory} of the
  memory's bandwidth. The host starts a kernel in {kernel} us, which limits small networks only.
  Compiled blocks would move less.
* **Links and networks** carry {link} of their rate. Between nodes all adapters of a node work at
  once, in the same number of rings. A collective takes {start} us, and in addition {hop} us per
  step within a node and {between} us between nodes, as in NCCL's own table (src/graph/tuning.cc).
* **Overlap.** {hidden} of ZeRO-3's gathers hide behind computation (counted on a CPU,
  [benchmarks/NOTES.md](../benchmarks/NOTES.md)). All-to-alls and gradients do not.
* **Left out:** loading, embedding, decoding, checkpoints, scores, slow nodes and failures.

`tdmvid plan --seconds S` replaces all of this with a measured iteration, for example one of
`python -m benchmarks.large`.

## Tables

| column | meaning |
| --- | --- |
| s | seconds of an iteration |
| of linear | throughput per GPU, divided by that of the first row |
| GB sent | by one GPU in an iteration |
| sending | share of the iteration that waits for sending |

"Of linear" is over 100 % if more GPUs need no accumulation, which makes the graded call twice, or
no recomputation."""


@dataclass(frozen=True)
class Point:
    """Prediction for one number of GPUs."""

    plan: Plan
    seconds: float
    sending: float
    """Share of the iteration that communication takes."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.plan.ranks

    @property
    def videos(self) -> int:
        """Videos per iteration, of all GPUs together."""
        batch = self.plan.config.batch
        return batch.micro * batch.accumulation * self.gpus // self.plan.config.parallel.sequence

    @property
    def throughput(self) -> float:
        """Videos per second, of all GPUs together."""
        return self.videos / self.seconds

    @property
    def sent(self) -> float:
        """GB that one GPU sends per iteration."""
        return sum(self.plan.traffic().values()) / 1e9

    @property
    def layout(self) -> str:
        """Description of the layout."""
        parallel, batch = self.plan.config.parallel, self.plan.config.batch
        words = [f"ZeRO-{parallel.zero_stage}"] if self.gpus > 1 else ["one process"]
        words += [f"{parallel.sequence} share a video"] * (parallel.sequence > 1)
        words += [f"micro {batch.micro}"] * (batch.micro > 1)
        words += [f"x {batch.accumulation}"] * (batch.accumulation > 1)
        if not parallel.gradient_checkpointing:
            words.append("no checkpointing")
        elif parallel.keep_attention:
            words.append("attention kept")
        return ", ".join(words)


class Scenarios:
    """Predictions for one model. Its networks are traced once for all of them.

    Args:
        config: Settings of a run with the model.
        terms: Device and node size.
    """

    def __init__(self, config: RunConfig, terms: Terms):
        self.config, self.terms, self.traces = config, terms, {}

    def configured(self, gpus: int) -> Point:
        """Predict the shipped config without changes, with one video per GPU.

        Args:
            gpus: Number of GPUs.

        Returns:
            The prediction.
        """
        return self._point(plan_layout(self._of(gpus), ranks=gpus, traces=self.traces))

    def quickest(self, gpus: int, videos: int) -> Point:
        """Predict the fastest layout that fits.

        Args:
            gpus: Number of GPUs.
            videos: Global batch.

        Returns:
            The prediction.
        """
        found = find_layouts(
            self._of(videos),
            ranks=gpus,
            terms=self.terms,
            limit=layout_limit(self.terms.device, 0),
            count=1,
            traces=self.traces,
        )
        return self._point(found[0].plan)

    def _of(self, videos: int) -> RunConfig:
        batch = replace(self.config.batch, micro=1, total=videos, accumulation=1)
        return replace(self.config, batch=batch)

    def _point(self, plan: Plan) -> Point:
        spent = predict_iteration(plan, self.terms.device, gpus=self.terms.gpus)
        return Point(plan, spent.total, spent.sending / spent.total)


def predict(config: RunConfig, terms: Terms, counts: Sequence[int]) -> dict[str, list[Point]]:
    """Predict the three cases of one model.

    Args:
        config: Settings of a run with the model.
        terms: Device and node size.
        counts: Numbers of GPUs.

    Returns:
        Predictions by case.
    """
    cases = Scenarios(config, terms)
    return {
        "as configured, one video per GPU": [cases.configured(gpus) for gpus in counts],
        "fastest layout, one video per GPU": [cases.quickest(gpus, gpus) for gpus in counts],
        f"fastest layout, {FIXED} videos in all": [cases.quickest(gpus, FIXED) for gpus in counts],
    }


def table(points: Sequence[Point]) -> str:
    """Format one case as a Markdown table. Linear scaling is relative to the first row.

    Args:
        points: Predictions of the case.

    Returns:
        The table.
    """
    first = points[0].throughput / points[0].gpus
    rows = [HEAD, ["---"] * len(HEAD)]
    rows += [
        (
            f"{point.gpus}",
            f"{point.videos}",
            point.layout,
            number(point.seconds),
            number(point.throughput),
            f"{point.throughput / point.gpus / first:.0%}",
            number(point.sent),
            f"{point.sending:.1%}",
        )
        for point in points
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdict(name: str, cases: dict[str, list[Point]]) -> str:
    """Describe where a model stops scaling, and why.

    Args:
        name: Name of the model.
        cases: Predictions by case.

    Returns:
        An item of a Markdown list.
    """
    own, grown, fixed = cases.values()
    low = [p.gpus for p in fixed if p.throughput / p.gpus < LOW * fixed[0].throughput]
    where = (
        f"it is below {LOW:.0%} of linear from {low[0]} GPUs on"
        if low
        else f"it stays above {LOW:.0%} of linear until no layout is left"
    )
    last, first = fixed[-1], fixed[0]
    work = last.plan.flops() * last.gpus / (first.plan.flops() * first.gpus)
    return (
        f"* **{name}.** One video per GPU: {_linear(grown):.0%} of linear at {grown[-1].gpus} GPUs."
        f" As configured, ZeRO-3 gathers the base, {own[-1].sending:.1%} of an iteration is spent"
        f" waiting for it, and {_linear(own):.0%} of linear remain. {FIXED} videos in all: {where}."
        f" At {last.gpus} GPUs it is {_linear(fixed):.0%}:"
        f" {last.plan.config.parallel.sequence} GPUs share a video, {last.sending:.0%} of an"
        f" iteration is sending, and all GPUs together compute {work:.2f} x the work of one."
    )


def _linear(points: Sequence[Point]) -> float:
    first, last = points[0], points[-1]
    return last.throughput / last.gpus / (first.throughput / first.gpus)


def page(models: dict[str, dict[str, list[Point]]], terms: Terms) -> str:
    """Create the contents of docs/scaling.md.

    Args:
        models: Predictions by model and case.
        terms: Device and node size.

    Returns:
        Markdown text.
    """
    device = terms.device
    text = PAGE.format(
        most=COUNTS[-1],
        node=NODE,
        end=FIXED * NODE,
        fixed=FIXED,
        device=device,
        verdicts="\n".join(verdict(name, cases) for name, cases in models.items()),
        matrix=f"{duration.MATRIX_SHARE:.0%}",
        memory=f"{duration.MEMORY_SHARE:.0%}",
        link=f"{duration.LINK_SHARE:.0%}",
        hidden=f"{duration.HIDDEN:.0%}",
        kernel=f"{duration.KERNEL_SECONDS * 1e6:g}",
        start=f"{duration.START * 1e6:g}",
        hop=f"{duration.HOP * 1e6:g}",
        between=f"{duration.HOP_BETWEEN_NODES * 1e6:g}",
    )
    parts = [text]
    for name, cases in models.items():
        parts.append(f"### {name}")
        for case, points in cases.items():
            parts += [f"{case[0].upper()}{case[1:]}:", table(points)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Predict all models and write the page and the plot."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", choices=list(DEVICES), default="h100", help="device to predict for"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="folder for scaling.md and scaling.svg"
    )
    args = parser.parse_args()
    terms, models = Terms(device=DEVICES[args.device], gpus=NODE), {}
    for name, stem in MODELS.items():
        print(f"planning {name}", file=sys.stderr, flush=True)
        models[name] = predict(load_config(stem), terms, COUNTS)
    write_text(args.out / "scaling.md", page(models, terms))
    write_text(args.out / "scaling.svg", draw(models, COUNTS))


if __name__ == "__main__":
    run_program(main)
