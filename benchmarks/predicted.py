"""Predict how runs scale to hundreds of GPUs, from the model that `tdmvid plan` prices runs with.

    python -m benchmarks.predicted

Writes docs/scaling.md and docs/scaling.png. Nothing is measured, and no GPU is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tdmvid.cli.leave import run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.data.files import write_text
from tdmvid.plan import duration
from tdmvid.plan.describe_layouts import layout_limit
from tdmvid.plan.devices import DEVICES
from tdmvid.plan.duration import predict_iteration
from tdmvid.plan.layouts import find_layouts, plan_layout
from tdmvid.plan.plan import Plan
from tdmvid.plan.price import Terms

MODELS = {
    "CogVideoX-2B": "cogvideox2b_4nfe",
    "CogVideoX-5B": "cogvideox5b_4nfe",
    "Wan 14B": "wan14b_4nfe",
}
NODE = 8
COUNTS = (1, 8, 16, 32, 64, 128, 256, 512)
FIXED = 64
"""Videos of the batch that does not grow."""
HEAD = ("GPUs", "videos an iteration", "layout", "s", "videos/s", "of linear", "GB sent", "sending")


PAGE = """\
# Scaling: a model, not a measurement

No figure here was measured on a GPU. `python -m benchmarks.predicted` writes this page: it plans
the ready configs on 1 to {most} x {device.name}, {node} in a node, and prices each plan as
`tdmvid plan --nodes N --gpus {node}` does.

![predicted throughput and traffic](scaling.png)

## Where it stops, and why

{verdicts}

Common to all of them:

* With one video a GPU it does not stop within these numbers: student and fake are adapters, so
  gradients are a few hundred MB, which a ring sends in milliseconds at any number of ranks. But the
  batch grows with the GPUs. Whether fewer iterations then do is not modelled.
* Of a batch that stays at {fixed}, a GPU first has fewer videos, then a share of one. Only the
  {node} GPUs of a node are let share a video, so {end} GPUs are the end. `batch.total` of the ready
  configs is 8, which ends at 64.
* GPUs that share a video exchange queries, keys, values and outputs four times a block, which
  nothing hides, and each computes padded heads and what lies outside the blocks.
* ZeRO-3 sends the same bytes at any number of ranks, but in a ring of more steps, whose delay grows
  with it. It is needed only where the whole base does not fit.

## What is assumed

* Peaks of the sheet ({device.sheet}): {device.tflops:g} TFLOP/s, {device.bandwidth:g} TB/s,
  {device.link:g} GB/s of NVLink in one direction. {device.network:g} GB/s of network a GPU, as in a
  DGX.
* Matrix products and attention run at {matrix} of the sheet's dense peak. An H200 was measured at
  788 TFLOP/s for large bfloat16 products, 80 % of it; CogVideoX-2B is estimated, not measured, to
  reach 55 to 60 % of that with all its other kernels.
* All other kernels read and write what a trace of the network counts, at {memory} of the memory's
  bandwidth; the host starts a kernel in {kernel} us, which binds small networks only.
* Links and networks carry {link} of their rate. Between nodes all adapters of a node work at once,
  in as many rings. A collective takes {start} us, and {hop} us a step within a node and
  {between} us between nodes, as in NCCL's own table (src/graph/tuning.cc).
* {hidden} of ZeRO-3's gathers hide behind computing (counted on a CPU,
  [benchmarks/NOTES.md](../benchmarks/NOTES.md)); all-to-alls and gradients do not.
* Left out: loading, embedding, decoding, checkpoints, scores, slow nodes and failures.

A measured iteration (`python -m benchmarks.large`) replaces all of this: `tdmvid plan --seconds S`.

## Tables

s: seconds of an iteration. GB sent: by one GPU in an iteration. sending: share of the iteration
that waits for it. of linear: throughput of a GPU, over that of the first row."""


@dataclass(frozen=True)
class Point:
    """One number of GPUs."""

    plan: Plan
    seconds: float
    sending: float
    """Share of the iteration."""

    @property
    def gpus(self) -> int:
        return self.plan.ranks

    @property
    def videos(self) -> int:
        batch = self.plan.config.batch
        return batch.micro * batch.accumulation * self.gpus // self.plan.config.parallel.sequence

    @property
    def throughput(self) -> float:
        """Videos a second, of all GPUs together."""
        return self.videos / self.seconds

    @property
    def sent(self) -> float:
        """GB that one GPU sends in an iteration."""
        return sum(self.plan.traffic().values()) / 1e9

    @property
    def layout(self) -> str:
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
    """What is predicted of one model; its networks are traced once for all of it."""

    def __init__(self, config: RunConfig, terms: Terms):
        self.config, self.terms, self.traces = config, terms, {}

    def configured(self, gpus: int) -> Point:
        """The ready config as it is, one video a GPU."""
        return self._point(plan_layout(self._of(gpus), ranks=gpus, traces=self.traces))

    def quickest(self, gpus: int, videos: int) -> Point:
        """The quickest layout that fits."""
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
    """Predict the three cases of one model."""
    cases = Scenarios(config, terms)
    return {
        "as configured, one video a GPU": [cases.configured(gpus) for gpus in counts],
        "quickest layout, one video a GPU": [cases.quickest(gpus, gpus) for gpus in counts],
        f"quickest layout, {FIXED} videos in all": [cases.quickest(gpus, FIXED) for gpus in counts],
    }


def table(points: Sequence[Point]) -> str:
    """Return one case as a Markdown table; linear is so many times the first row's throughput."""
    first = points[0].throughput / points[0].gpus
    rows = [HEAD, ["---"] * len(HEAD)]
    rows += [
        (
            f"{point.gpus}",
            f"{point.videos}",
            point.layout,
            f"{point.seconds:.3g}",
            f"{point.throughput:.3g}",
            f"{point.throughput / point.gpus / first:.0%}",
            f"{point.sent:.3g}",
            f"{point.sending:.1%}",
        )
        for point in points
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdict(name: str, cases: dict[str, list[Point]]) -> str:
    """Say where a model stops scaling, and why."""
    own, grown, fixed = cases.values()
    half = [p.gpus for p in fixed if p.throughput / p.gpus < 0.8 * fixed[0].throughput]
    where = (
        f"from {half[0]} GPUs on it is below 80 % of linear" if half else "80 % or more of linear"
    )
    last, first = fixed[-1], fixed[0]
    work = last.plan.flops() * last.gpus / (first.plan.flops() * first.gpus)
    return (
        f"* {name}. One video a GPU: {_linear(grown):.0%} of linear at {grown[-1].gpus} GPUs"
        f" ({_linear(own):.0%} as configured, where ZeRO-3 gathers the base and"
        f" {own[-1].sending:.1%} of an iteration is waited for). {FIXED} videos in all: {where};"
        f" at {last.gpus} GPUs, {_linear(fixed):.0%}: {last.plan.config.parallel.sequence} GPUs"
        f" share a video, {last.sending:.0%} of an iteration is sending, and all GPUs together"
        f" compute {work:.2f} x the work of one."
    )


def _linear(points: Sequence[Point]) -> float:
    first, last = points[0], points[-1]
    return last.throughput / last.gpus / (first.throughput / first.gpus)


def page(models: dict[str, dict[str, list[Point]]], terms: Terms) -> str:
    """Return docs/scaling.md."""
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


def draw(models: dict[str, dict[str, list[Point]]], path: Path) -> None:
    """Draw throughput and traffic over the number of GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    styles = (":", "-", "--")
    for index, (name, cases) in enumerate(models.items()):
        for style, (case, points) in zip(styles, cases.items(), strict=True):
            gpus, label = [p.gpus for p in points], f"{name}: {case}"
            axes[0].plot(
                gpus, [p.throughput for p in points], style, color=f"C{index}", label=label
            )
            sent = [max(p.sent, 1e-3) for p in points]
            axes[1].plot(gpus[1:], sent[1:], style, color=f"C{index}")
    for axis, title in zip(axes, ("videos a second", "GB sent, a GPU and iteration"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="H100", title=f"predicted: {title}")
        axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
        axis.minorticks_off()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=list(DEVICES), default="h100")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    args = parser.parse_args()
    terms, models = Terms(device=DEVICES[args.device], gpus=NODE), {}
    for name, stem in MODELS.items():
        print(f"planning {name}", file=sys.stderr, flush=True)
        models[name] = predict(load_config(stem), terms, COUNTS)
    draw(models, args.out / "scaling.png")
    write_text(args.out / "scaling.md", page(models, terms))


if __name__ == "__main__":
    run_program(main)
