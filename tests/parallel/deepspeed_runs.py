"""Short TDM runs on one or more ranks, and functions that compare them."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from ranks import save

from tdmvid.adapters.lora import Base, attach, shared_copy
from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.config import ClipSize, LoraSettings, ModelConfig, OptimConfig
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.stream import Stream
from tdmvid.distill.tdm import TDM
from tdmvid.parallel import collectives, deepspeed_engine, launch
from tdmvid.parallel.deepspeed_config import deepspeed_config
from tdmvid.parallel.deepspeed_engine import DeepSpeedEngine, shard_frozen
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.optim import LossScale
from tdmvid.parallel.rng import Streams
from tdmvid.roles.recompute import keep_attention

BATCH, GLOBAL = 2, 2  # samples per micro-batch, micro-batches per iteration
SGD = OptimConfig(lr=0.2, algorithm="sgd", clip=0.0)
ADAMW = OptimConfig(lr=1e-3, weight_decay=0.1, clip=0.05, warmup=2, schedule="cosine")


@dataclass(frozen=True)
class Case:
    """Settings of a run; `backend` "torch" is the reference."""

    model: str
    backend: str = "deepspeed"
    optim: OptimConfig = SGD
    steps: int = 3
    zero_stage: int = 3
    threshold: int = 0
    dtype: str = "float32"
    skip: tuple[int, int] | None = (
        None  # in this iteration the student of this stream skips its step
    )
    poison: tuple[int, int] | None = None  # in this iteration this stream has a NaN in its text
    save: str | None = None  # after half of the steps, or after the last step of `span`
    span: tuple[int, int] | None = None  # only these iterations
    load: str | None = None
    shared: bool = True
    sequence: int = 1  # number of ranks that share one video
    offload: str = "none"
    full: bool = False  # train three whole networks
    scale: float = 0.0  # initial loss scale
    draws: str = "own"  # or "shared": one draw for both turns
    rollout: str = "full"  # with "stop", results depend on the micro-batches of a rank
    updates: str = "sequential"  # or "joint"
    live: int = 0  # values that may be gathered at a time; 0 is DeepSpeed's default
    kept: bool = False  # store attention outputs instead of recomputing them


def write_model(
    folder: Path, *, heads: int = 2, layers: int = 1, text: int = 8, rotary: bool = False
) -> str:
    """Save a tiny transformer with `heads` heads on `text` + 48 tokens, a scheduler and the shape
    of the autoencoder.
    """
    torch.manual_seed(0)
    CogVideoXTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=16,
        num_layers=layers,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=text,
        use_rotary_positional_embeddings=rotary,
    ).save_pretrained(folder / "transformer")
    CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0
    ).save_pretrained(folder / "scheduler")
    (folder / "vae").mkdir()
    vae = {
        "_class_name": AutoencoderKLCogVideoX.__name__,
        "block_out_channels": [8] * 4,
        "temporal_compression_ratio": 4,
        "scaling_factor": 1.0,
    }
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    return str(folder)


def randomise(module, seed: int) -> None:
    """Set adapters away from zero, so that every role has a gradient from the first step."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if "lora_" in name:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))


def build(case: Case, world: launch.World):
    """Build the backbone, and the engine of each role over one shared base."""
    size = ClipSize(frames=9, height=64, width=64)
    backbone = CogVideoX(
        Path(case.model), ModelConfig(path=case.model, dtype=case.dtype), size, "cpu"
    )
    if case.full:
        trees = {
            "student": deepcopy(backbone.network).requires_grad_(True),
            "fake": deepcopy(backbone.network).requires_grad_(True),
        }
    else:
        copy = (
            shared_copy(backbone.network)
            if case.shared
            else CogVideoX(Path(case.model), ModelConfig(dtype=case.dtype), size, "cpu").network
        )
        trees = {"student": backbone.network, "fake": copy}
    engines = {}
    for seed, (role, tree) in enumerate(trees.items()):
        if not case.full:
            attach(tree, LoraSettings(rank=4, alpha=4), backbone.lora_targets, seed=seed)
            randomise(tree, seed)
        if world.sequence:
            backbone.share_tokens(tree, world.sequence)
        tree.enable_gradient_checkpointing(keep_attention if case.kept else None)
        common = {"total_steps": 8, "ema": 0.9}
        optim = (
            replace(case.optim, lr=200.0) if (role, case.optim) == ("fake", SGD) else case.optim
        )  # because its gradient is correspondingly small
        if case.backend == "torch":
            engines[role] = TorchEngine(
                tree, optim, accumulation=GLOBAL, dtype=getattr(torch, case.dtype), **common
            )
        else:
            engines[role] = DeepSpeedEngine(
                tree,
                optim,
                accumulation=GLOBAL // world.data_size,
                micro_batch=BATCH,
                zero_stage=case.zero_stage,
                dtype=getattr(torch, case.dtype),
                persistence_threshold=case.threshold,
                offload=case.offload,
                **common,
            )
        if case.scale:
            (
                engines[role]._set_scale(LossScale(case.scale, 1000))
                if case.backend != "torch"
                else setattr(engines[role], "scale", LossScale(case.scale, 1000))
            )
    if not case.full:
        return backbone, engines, Base(engines["student"], engines["student"].module)
    teacher = backbone.network
    if world.sequence:
        backbone.share_tokens(teacher, world.sequence)
    return (
        backbone,
        engines,
        (
            teacher
            if case.backend == "torch"
            else shard_frozen(teacher, micro_batch=BATCH, persistence_threshold=0)
        ),
    )


def gather_little(live: int) -> None:
    """Make DeepSpeed treat a small network like a large one, which does not fit into the gather
    limit.
    """

    def config(*args, **kwargs):
        settings = deepspeed_config(*args, **kwargs)
        settings["zero_optimization"] |= {
            "stage3_max_live_parameters": live,
            "stage3_max_reuse_distance": live,
            "stage3_prefetch_bucket_size": live // 4,
        }
        return settings

    deepspeed_engine.deepspeed_config = config


class Skipping:
    """Engine that is asked to skip all steps."""

    def __init__(self, engine):
        self.engine, self.backward = engine, engine.backward

    def step(self, *, skip: bool):
        return self.engine.step(skip=True)


def run(case: Case) -> dict:
    """Train, and return the scalars of every iteration averaged over ranks, the final weights and
    the averages.
    """
    torch.set_num_threads(1)
    world = launch.start(
        "none" if case.backend == "torch" else "auto", timeout_minutes=0.5, sequence=case.sequence
    )
    if case.live:
        gather_little(case.live)
    backbone, engines, teacher = build(case, world)
    if case.load:
        for role, engine in engines.items():
            engine.load(Path(case.load) / role)
    denoiser, student = backbone.denoiser, engines["student"]
    roles = Roles(denoiser(student), denoiser(engines["fake"]), denoiser(teacher))
    grid, streams, local = uniform(4, backbone.process), Streams(7), GLOBAL // world.data_size
    objective = TDM(draws=case.draws, rollout=case.rollout, updates=case.updates)
    stream, shape = None, (BATCH, *backbone.latent_shape())
    if case.rollout == "stream":
        layout = {"micros": local, "first_stream": world.data_rank * local, "total_micros": GLOBAL}
        stream = Stream(objective, [grid], streams, shape, **layout)
    log, failed, snapshots = [], [], []
    first_step, last_step = case.span or (case.steps // 2 if case.load else 0, case.steps)
    saved_at = last_step if case.span else case.steps // 2
    for step in range(first_step, last_step):
        first, asked = world.data_rank * local, dict(engines)
        texts = [
            torch.randn(
                BATCH,
                backbone.network.config.max_text_seq_length,
                16,
                generator=streams.generator(step, "text", first + micro),
            )
            for micro in range(local)
        ]
        mine = range(first, first + local)
        if case.poison and case.poison[0] == step and case.poison[1] in mine:
            texts[case.poison[1] - first][0, 0, 0] = float("nan")
        if case.skip and case.skip[0] == step and case.skip[1] in mine:
            asked["student"] = Skipping(student)
        outcome = iterate(
            step,
            [Cond({"prompt_embeds": text}) for text in texts],
            shape,
            objective=objective,
            roles=roles,
            engines=asked,
            grid=grid,
            streams=streams,
            first_stream=first,
            stream=stream,
        )
        log.append(collectives.mean(outcome.scalars))
        failed.append(outcome.failed)
        if case.save and step + 1 == saved_at:
            for role, engine in engines.items():
                save(engine, Path(case.save) / role)
            collectives.barrier()
        snapshots.append(arrays(engines))
    updates = {role: engine.updates for role, engine in engines.items()}
    launch.finish()
    return {"log": log, "failed": failed, "weights": snapshots, "updates": updates}


def arrays(engines) -> dict[str, np.ndarray]:
    return {
        f"{role}/{kind}/{name}": tensor.numpy()
        for role, engine in engines.items()
        for kind, averaged in (("own", False), ("ema", True))
        for name, tensor in engine.weights(averaged=averaged).items()
    }


def assert_same_run(a: dict, b: dict, *, losses: float = 1e-5, weights: float = 1e-5) -> None:
    """Compare two runs: losses and gradient norms of every iteration relative to their value,
    weights and averages by absolute difference. A step has the size of the learning rate, not of
    the weight.
    """
    assert a["failed"] == b["failed"] and a["updates"] == b["updates"]
    for step, failed in enumerate(a["failed"]):
        for name, value in a["log"][step].items():
            if failed is None and name.startswith(("loss", "grad_norm")):
                assert value == pytest.approx(b["log"][step][name], rel=losses, abs=0), (step, name)
        assert_close(a["weights"][step], b["weights"][step], weights)


def assert_close(a: dict, b: dict, limit: float) -> None:
    assert a.keys() == b.keys() and len(a) > 0
    for name, value in a.items():
        assert np.isfinite(value).all() and np.abs(value - b[name]).max() <= limit, name


def part(weights: dict, role: str) -> dict:
    return {name: value for name, value in weights.items() if name.startswith(role)}
