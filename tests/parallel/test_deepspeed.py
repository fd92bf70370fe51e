"""DeepSpeed engines against the one-process engine, through whole TDM iterations.

A run is a function of the number of ranks and of micro-batches; streams make two ranks draw
what one rank draws in two micro-batches, so both must learn the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from ranks import run_ranks

from tdmvid.adapters.lora import Base, LoraSettings, attach, shared_copy
from tdmvid.backbones.base import ClipSize, ModelConfig
from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.parallel import launch
from tdmvid.parallel.deepspeed_engine import DeepSpeedEngine, deepspeed_config
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.optim import OptimConfig
from tdmvid.parallel.rng import Streams

BATCH, GLOBAL = 2, 2  # samples of a micro-batch, micro-batches of an iteration
SGD = OptimConfig(lr=0.2, algorithm="sgd", clip=0.0)
ADAMW = OptimConfig(lr=1e-3, weight_decay=0.1, clip=0.05, warmup=2, schedule="cosine")


@dataclass(frozen=True)
class Case:
    """One run; `backend` "torch" is the reference."""

    model: str
    backend: str = "deepspeed"
    optim: OptimConfig = SGD
    steps: int = 4
    zero_stage: int = 3
    threshold: int = 0
    dtype: str = "float32"
    skip: tuple[int, int] | None = None  # at this iteration this rank asks to skip its student's step
    poison: tuple[int, int] | None = None  # at this iteration this rank has a NaN in its text
    save: str | None = None  # after half of the steps
    load: str | None = None
    shared: bool = True


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A pipeline folder with a tiny transformer."""
    folder = tmp_path_factory.mktemp("cogvideox")
    torch.manual_seed(0)
    CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=16,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=8,
    ).save_pretrained(folder / "transformer")
    CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0).save_pretrained(folder / "scheduler")
    (folder / "vae").mkdir()
    vae = {"_class_name": AutoencoderKLCogVideoX.__name__, "block_out_channels": [8] * 4, "temporal_compression_ratio": 4, "scaling_factor": 1.0}
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    return str(folder)


def randomise(module, seed: int) -> None:
    """Adapters away from zero, so that every role has a gradient from the first step."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if "lora_" in name:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))


def build(case: Case):
    """The backbone, and the engine of each role over one shared base."""
    size = ClipSize(frames=9, height=64, width=64)
    backbone = CogVideoX(Path(case.model), ModelConfig(path=case.model, dtype=case.dtype), size, "cpu")
    copy = shared_copy(backbone.network) if case.shared else CogVideoX(Path(case.model), ModelConfig(dtype=case.dtype), size, "cpu").network
    engines = {}
    for seed, (role, tree) in enumerate({"student": backbone.network, "fake": copy}.items()):
        attach(tree, LoraSettings(rank=4, alpha=4), backbone.lora_targets, seed=seed)
        randomise(tree, seed)
        tree.enable_gradient_checkpointing()
        common = dict(total_steps=8, ema=0.9)
        if case.backend == "torch":
            engines[role] = TorchEngine(tree, case.optim, accumulation=GLOBAL, **common)
        else:
            engines[role] = DeepSpeedEngine(
                tree, case.optim, accumulation=GLOBAL // int(os.environ["WORLD_SIZE"]), micro_batch=BATCH, zero_stage=case.zero_stage,
                dtype=getattr(torch, case.dtype), persistence_threshold=case.threshold, **common,
            )
    return backbone, engines


class Skipping:
    """An engine whose steps are all asked to be skipped."""

    def __init__(self, engine):
        self.engine, self.backward = engine, engine.backward

    def step(self, *, skip: bool):
        return self.engine.step(skip=True)


def run(case: Case) -> dict:
    """Train; scalars of every iteration as averaged over ranks, and the final weights and averages as arrays."""
    torch.set_num_threads(1)
    world = launch.start("none" if case.backend == "torch" else "auto", timeout_minutes=0.5)
    backbone, engines = build(case)
    if case.load:
        for role, engine in engines.items():
            engine.load(Path(case.load) / role)
    denoiser, student = backbone.denoiser, engines["student"]
    roles = Roles(denoiser(student), denoiser(engines["fake"]), denoiser(Base(student, student.module)))
    grid, streams, local = uniform(4, backbone.process), Streams(7), GLOBAL // world.size
    log, failed, snapshots = [], [], []
    for step in range(case.steps // 2 if case.load else 0, case.steps):
        first, asked = world.rank * local, dict(engines)
        texts = [torch.randn(BATCH, 8, 16, generator=streams.generator(step, "text", first + micro)) for micro in range(local)]
        if case.poison == (step, world.rank):
            texts[0][0, 0, 0] = float("nan")
        if case.skip == (step, world.rank):
            asked["student"] = Skipping(student)
        outcome = iterate(
            step, [Cond({"prompt_embeds": text}) for text in texts], (BATCH, *backbone.latent_shape()), objective=TDM(),
            roles=roles, engines=asked, grid=grid, streams=streams, first_stream=first,
        )
        log.append(launch.mean(outcome.scalars))
        failed.append(outcome.failed)
        if case.save and step + 1 == case.steps // 2:
            for role, engine in engines.items():
                engine.save(Path(case.save) / role)
        snapshots.append(arrays(engines))
    updates = {role: engine.updates for role, engine in engines.items()}
    launch.finish()
    return {"log": log, "failed": failed, "weights": snapshots, "updates": updates}


def arrays(engines) -> dict[str, np.ndarray]:
    return {
        f"{role}/{kind}/{name}": tensor.numpy()
        for role, engine in engines.items() for kind, averaged in (("own", False), ("ema", True))
        for name, tensor in engine.weights(averaged=averaged).items()
    }


def loss_gap(a: dict, b: dict) -> float:
    return max(abs(x[name] - y[name]) for x, y in zip(a["log"], b["log"], strict=True) for name in x if name.startswith("loss"))


def weight_gap(a: dict, b: dict, step: int = -1) -> float:
    assert a["weights"][step].keys() == b["weights"][step].keys()
    return max(np.abs(value - b["weights"][step][name]).max() for name, value in a["weights"][step].items())


def assert_same_run(a: dict, b: dict, *, losses: float, weights: float) -> None:
    norms = [abs(x["grad_norm/student"] - y["grad_norm/student"]) for x, y in zip(a["log"], b["log"], strict=True)]
    print(f"losses {loss_gap(a, b):.1e}, norms {max(norms):.1e}, weights {weight_gap(a, b):.1e}")
    assert a["failed"] == b["failed"] and a["updates"] == b["updates"]
    assert loss_gap(a, b) < losses and weight_gap(a, b) < weights and max(norms) < 10 * losses


@pytest.fixture(scope="module")
def reference(model):
    """The one-process runs, by optimiser."""
    return {optim: run_ranks(1, run, Case(model, "torch", optim))[0] for optim in (SGD, ADAMW)}


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_the_reference_learns_enough_for_a_comparison_to_mean_something(reference, optim):
    moved = reference[optim]
    assert max(np.abs(v - moved["weights"][0][name]).max() for name, v in moved["weights"][-1].items()) > 1e-3


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_zero_3_on_any_ranks_is_one_process_with_the_same_micro_batches(model, reference, ranks, optim):
    for result in run_ranks(ranks, run, Case(model, optim=optim)):
        assert_same_run(result, reference[optim], losses=1e-6, weights=1e-5)


@pytest.mark.parametrize("change", [{"zero_stage": 1}, {"zero_stage": 2}, {"threshold": 100_000}, {"shared": False}], ids=str)
def test_sharding_less_changes_nothing(model, reference, change):
    result = run_ranks(2, run, replace(Case(model, optim=ADAMW), **change))[1]
    assert_same_run(result, reference[ADAMW], losses=1e-6, weights=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_one_rank_that_fails_makes_all_ranks_skip(model, stage):
    """A NaN in rank 1's data, or its wish to skip, leaves weights and moments of both as they were."""
    case = Case(model, optim=ADAMW, zero_stage=stage, steps=4)
    plain, poisoned, skipped = (run_ranks(2, run, c) for c in (case, replace(case, poison=(3, 1)), replace(case, skip=(3, 1))))
    for rank in (0, 1):
        assert poisoned[rank]["failed"] == [None] * 3 + ["fake"] and skipped[rank]["failed"] == [None] * 3 + ["student"]
        assert poisoned[rank]["updates"] == {"student": 3, "fake": 3} and skipped[rank]["updates"] == {"student": 3, "fake": 4}
        assert weight_gap(poisoned[rank], plain[rank], step=2) == 0
        assert all((poisoned[rank]["weights"][3][n] == v).all() for n, v in plain[rank]["weights"][2].items())
        assert all((skipped[rank]["weights"][3][n] == v).all() for n, v in plain[rank]["weights"][2].items() if "student" in n)
        assert all((skipped[rank]["weights"][3][n] == v).all() for n, v in plain[rank]["weights"][3].items() if "fake" in n)
