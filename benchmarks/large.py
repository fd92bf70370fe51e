"""One TDM iteration of a large model with random weights: seconds, memory, share of the matrix rate.

    python benchmarks/large.py --config configs/cogvideox2b_4nfe.json
    python benchmarks/large.py --config configs/cogvideox2b_4nfe.json --layers 2 --set video.frames=9 \
        --set video.height=64 --set video.width=64 --set model.dtype=float32 --set parallel.gradient_checkpointing=false  # on a CPU
    torchrun --nproc_per_node 8 benchmarks/large.py --config configs/cogvideox1.5_5b_4nfe.json

The architecture is the real one, from the configs that are shipped; nothing is downloaded.
Prints what the plan predicted beside what was measured, and one JSON line. On a CPU only the
activations are measured (what autograd keeps), and only without checkpointing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tdmvid.backbones.base import Backbone, find_family, load_backbone  # noqa: E402
from tdmvid.config import RunConfig, load_config  # noqa: E402
from tdmvid.diffusion.denoiser import Cond, Guided  # noqa: E402
from tdmvid.distill.iteration import iterate  # noqa: E402
from tdmvid.distill.objective import Roles  # noqa: E402
from tdmvid.parallel import launch  # noqa: E402
from tdmvid.parallel.rng import Streams  # noqa: E402
from tdmvid.train.plan import GIB, describe, make_plan  # noqa: E402
from tdmvid.train.setup import build_engines  # noqa: E402


def write_untrained(config: RunConfig, work: Path, layers: int) -> Path:
    """A teacher's folder with the architecture of `config.model` and random weights, `layers` blocks deep (0: all)."""
    folder, family = find_family(config.model, weights=False)
    out = work / f"{config.model.path.replace('/', '--')}-{layers or 'all'}-{config.model.dtype}"
    if (out / "done").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    if layers:
        path = out / family.network_folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": layers}))
    torch.manual_seed(0)
    network = nn.Module.to(family.empty_network(out), config.model.torch_dtype)
    network.save_pretrained(out / family.network_folder)
    (out / "done").touch()
    return out


def text_like(backbone: Backbone, batch: int, seed: int) -> Cond:
    """Random embeddings of the teacher's own shape."""
    example = type(backbone).example(backbone.network, backbone.folder, backbone.size, batch, backbone.config.torch_dtype)
    shape = example["encoder_hidden_states"].shape
    return Cond({"prompt_embeds": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}).to(backbone.device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Best of ten large matrix products, in FLOP per second."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device) for _ in range(11)][1:]
    return 2 * size**3 / min(seconds)


def timed(call, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


class Kept:
    """Bytes that autograd keeps at once: the measure of activations where no allocator counts."""

    def __init__(self, networks: list[nn.Module]):
        self.known = {p.untyped_storage().data_ptr() for network in networks for p in (*network.parameters(), *network.buffers())}
        self.alive, self.now, self.peak = {}, 0, 0

    def pack(self, tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.known:
            return tensor
        count, size = self.alive.get(key, (0, storage.nbytes()))
        self.now += 0 if count else size
        self.peak = max(self.peak, self.now)
        self.alive[key] = count + 1, size
        return _Held(self, key, tensor)

    def drop(self, key: int) -> None:
        count, size = self.alive[key]
        self.alive[key] = count - 1, size
        if count == 1:
            self.now -= size
            del self.alive[key]


class _Held:
    """A tensor that autograd holds; says when it no longer does."""

    def __init__(self, kept: Kept, key: int, tensor: torch.Tensor):
        self.kept, self.key, self.tensor = kept, key, tensor

    def __del__(self):
        self.kept.drop(self.key)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--layers", type=int, default=0, help="a model of so many blocks; 0: all of its own")
    parser.add_argument("--iterations", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--work", type=Path, default=Path("cache/untrained"), help="where random weights are written once")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(config: RunConfig, world: launch.World, iterations: int) -> tuple[list[float], int, int]:
    """Seconds of each iteration, peak bytes of the allocator (0 on a CPU), peak bytes that autograd keeps."""
    device, batch = world.device, config.batch
    backbone = load_backbone(config.model, config.video, device=device)
    engines, teacher = build_engines(config, world, backbone)
    denoisers = {role: backbone.denoiser(engine) for role, engine in engines.items()}
    roles = Roles(denoisers["student"], denoisers["fake"], Guided(teacher, text_like(backbone, 1, 0), config.objective.cfg))
    grid, streams = config.grid.build(backbone.process), Streams(config.seed, device)
    conds = [text_like(backbone, batch.micro, 1 + world.data_rank) for _ in range(batch.accumulation)]

    def one(step: int) -> None:
        outcome = iterate(
            step, conds, (batch.micro, *backbone.latent_shape()), objective=config.objective, roles=roles, engines=engines,
            grid=grid, streams=streams, first_stream=world.data_rank * batch.accumulation,
        )
        assert outcome.failed is None, outcome

    kept = Kept([engine.module for engine in engines.values()])
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor if isinstance(held, _Held) else held):
        one(0)  # not timed: counting costs time
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [timed(lambda: one(1 + step), device) for step in range(iterations)]
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0, kept.peak


def main() -> None:
    args = arguments()
    config = load_config(args.config, args.set)
    world = launch.start(config.parallel.backend, config.parallel.timeout_minutes, sequence=config.parallel.sequence)
    if world.primary:
        write_untrained(config, args.work, args.layers)
    launch.barrier()
    config = replace(config, model=replace(config.model, path=str(write_untrained(config, args.work, args.layers))))
    plan, rate = make_plan(config, ranks=world.size), matrix_rate(world.device, config.model.torch_dtype)
    seconds, allocated, kept = measure(config, world, args.iterations)
    mean = statistics.mean(seconds)  # k differs between iterations, the plan has its mean
    useful = config.batch.accumulation * (plan.forwards * plan.call.forward_flops + plan.backwards * plan.call.backward_flops)
    result = {
        "config": args.config.name, "layers": args.layers, "ranks": world.size, "device": str(world.device), "seconds": seconds,
        "matrix_tflops": rate / 1e12, "share_executed": plan.flops() / mean / rate, "share_useful": useful / mean / rate,
        "peak_gib": allocated / GIB, "planned_gib": plan.total() / GIB,
        "activations_gib": kept / GIB, "planned_activations_gib": plan.memory()["activations"] / GIB,
    }
    if world.primary:
        print(describe(plan))
        print(f"seconds per iteration: mean {mean:.3f}, {', '.join(f'{s:.3f}' for s in seconds)}")
        print(f"matrix rate {rate / 1e12:.2f} TFLOP/s; executed {result['share_executed']:.0%} of it, {result['share_useful']:.0%} without recomputation")
        print(f"activations kept {result['activations_gib']:.3f} GiB, planned {result['planned_activations_gib']:.3f} GiB")
        if allocated:
            print(f"peak {result['peak_gib']:.2f} GiB, planned {result['planned_gib']:.2f} GiB")
        print(json.dumps(result))
    launch.finish()


if __name__ == "__main__":
    main()
