"""DeepSpeed engines against the one-process engine, through whole TDM iterations.

A run is a function of the number of ranks and of micro-batches; streams make two ranks draw
what one rank draws in two micro-batches, so both must learn the same.
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from ranks import run_ranks, save
from refusals import refused

from tdmvid.adapters.lora import Base, attach, shared_copy
from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.config import ClipSize, LoraSettings, ModelConfig, OptimConfig
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.parallel import deepspeed_engine, launch
from tdmvid.parallel.deepspeed_engine import DeepSpeedEngine, deepspeed_config, shard_frozen
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.optim import LossScale
from tdmvid.parallel.rng import Streams
from tdmvid.roles.recompute import keep_attention

BATCH, GLOBAL = 2, 2  # samples of a micro-batch, micro-batches of an iteration
SGD = OptimConfig(lr=0.2, algorithm="sgd", clip=0.0)
ADAMW = OptimConfig(lr=1e-3, weight_decay=0.1, clip=0.05, warmup=2, schedule="cosine")


@dataclass(frozen=True)
class Case:
    """One run; `backend` "torch" is the reference."""

    model: str
    backend: str = "deepspeed"
    optim: OptimConfig = SGD
    steps: int = 3
    zero_stage: int = 3
    threshold: int = 0
    dtype: str = "float32"
    skip: tuple[int, int] | None = (
        None  # at this iteration the student of this stream asks for no step
    )
    poison: tuple[int, int] | None = None  # at this iteration this stream has a NaN in its text
    save: str | None = None  # after half of the steps, or after the last of `span`
    span: tuple[int, int] | None = None  # only these iterations
    load: str | None = None
    shared: bool = True
    sequence: int = 1  # ranks that share one video
    offload: str = "none"
    full: bool = False  # three whole networks
    scale: float = 0.0  # the loss scale to start with
    draws: str = "own"  # or one for both turns
    rollout: str = "full"  # with "stop", numbers depend on the micro-batches of a rank
    live: int = 0  # weights that may be gathered at a time; 0 is the library's default
    kept: bool = False  # attention is not computed again


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A pipeline folder with a tiny transformer."""
    return write_model(tmp_path_factory.mktemp("cogvideox"))


def write_model(
    folder: Path, *, heads: int = 2, layers: int = 1, text: int = 8, rotary: bool = False
) -> str:
    """A tiny transformer of `heads` heads on `text` + 48 tokens, with scheduler and the
    autoencoder's shape.
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
    """Adapters away from zero, so that every role has a gradient from the first step."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if "lora_" in name:
            p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))


def build(case: Case, world: launch.World):
    """The backbone, and the engine of each role over one shared base."""
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
        )  # its gradient is as small
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
    """Make a small network as large as a real one to DeepSpeed: it does not fit into what may be
    gathered at a time.
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
    """An engine whose steps are all asked to be skipped."""

    def __init__(self, engine):
        self.engine, self.backward = engine, engine.backward

    def step(self, *, skip: bool):
        return self.engine.step(skip=True)


def run(case: Case) -> dict:
    """Train; scalars of every iteration as averaged over ranks, and the final weights and averages
    as arrays.
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
            (BATCH, *backbone.latent_shape()),
            objective=TDM(draws=case.draws, rollout=case.rollout),
            roles=roles,
            engines=asked,
            grid=grid,
            streams=streams,
            first_stream=first,
        )
        log.append(launch.mean(outcome.scalars))
        failed.append(outcome.failed)
        if case.save and step + 1 == saved_at:
            for role, engine in engines.items():
                save(engine, Path(case.save) / role)
            launch.barrier()
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
    """Losses and gradient norms of every iteration within `losses` of their value; weights and
    averages after it within `weights`, absolute: a step has the size of the rate, not the weight's.
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


@pytest.fixture(scope="module")
def reference(model):
    """One-process runs, made once each."""
    runs = {}

    def of(**choices) -> dict:
        case = Case(model, "torch", **choices)
        if case not in runs:
            runs[case] = run_ranks(1, run, case)[0]
        return runs[case]

    return of


OPTIMS = pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])


@OPTIMS
@pytest.mark.slow
def test_the_reference_moves_far_more_than_the_tolerance(reference, optim):
    first, *_, last = reference(optim=optim)["weights"]
    for role in ("student/own", "fake/own"):
        assert (
            max(np.abs(value - first[name]).max() for name, value in part(last, role).items())
            > 1e-4
        )


@OPTIMS
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_zero_3_on_any_ranks_is_one_process_with_the_same_micro_batches(
    model, reference, ranks, optim
):
    for result in run_ranks(ranks, run, Case(model, optim=optim)):
        assert_same_run(result, reference(optim=optim))


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.slow
def test_one_call_of_the_fake_serves_both_turns_on_two_ranks_as_in_one_process(
    model, reference, stage
):
    expected = reference(draws="shared")
    for result in run_ranks(2, run, Case(model, draws="shared", zero_stage=stage)):
        assert_same_run(result, expected)


@OPTIMS
@pytest.mark.parametrize("rotary", [False, True], ids=["sincos", "rotary"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.slow
def test_ranks_that_share_a_video_are_one_process_whatever_its_heads_and_tokens(
    tmp_path, ranks, rotary, optim
):
    """3 heads and 7 + 48 tokens divide by neither 2 nor 4; 4 ranks are two videos of two ranks
    each.
    """
    model = write_model(tmp_path, heads=3, layers=2, text=7, rotary=rotary)
    # two ranks on one video have as many micro-batches as one process
    case = Case(model, optim=optim, steps=4, rollout="stop" if ranks == 2 else "full")
    reference = run_ranks(1, run, replace(case, backend="torch"))[0]
    for result in run_ranks(ranks, run, replace(case, sequence=2)):
        # Adam divides a small gradient by its own size, so rounding moves a share of the rate
        assert_same_run(result, reference, weights=5e-5 if optim is ADAMW else 1e-5)


@pytest.mark.parametrize("sequence", [1, 2])
@pytest.mark.slow
def test_three_whole_networks_are_sharded_too(model, reference, sequence):
    optim = replace(SGD, lr=0.05)
    whole = reference(full=True, optim=optim)
    assert (
        max(
            np.abs(value - whole["weights"][0][name]).max()
            for name, value in whole["weights"][-1].items()
        )
        > 1e-4
    )
    for result in run_ranks(2, run, Case(model, full=True, optim=optim, sequence=sequence)):
        assert_same_run(result, whole)


@pytest.mark.parametrize("sequence", [1, 2])
@pytest.mark.slow
def test_attention_is_kept_while_weights_are_gathered_again(model, reference, sequence):
    """Not as many of them as in the forward pass."""
    for result in run_ranks(2, run, Case(model, kept=True, sequence=sequence)):
        assert_same_run(result, reference())


@pytest.mark.parametrize("live", [2_000, 10_000])
@pytest.mark.slow
def test_a_base_larger_than_what_is_gathered_at_a_time_trains_as_in_one_process(tmp_path, live):
    """What one engine has begun to fetch ahead, another may need first."""
    case = Case(write_model(tmp_path, layers=4), optim=ADAMW, live=live)
    reference = run_ranks(1, run, replace(case, backend="torch"))[0]
    for result in run_ranks(2, run, case):
        assert_same_run(result, reference)


@pytest.mark.parametrize("offload", ["optimizer", "all"])
@pytest.mark.slow
def test_what_waits_in_host_memory_changes_nothing(model, reference, offload):
    trouble = {"optim": ADAMW, "steps": 4, "skip": (1, 1), "poison": (2, 1)}
    for result in run_ranks(2, run, Case(model, offload=offload, **trouble)):
        assert_same_run(result, reference(**trouble))


@pytest.mark.slow
def test_sharing_the_base_changes_nothing(model, reference):
    for result in run_ranks(2, run, Case(model, optim=ADAMW, shared=False)):
        assert_same_run(result, reference(optim=ADAMW))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.slow
def test_one_rank_that_fails_makes_all_ranks_skip_and_forget(model, reference, stage):
    """Rank 1 asks to skip a student's step, then has a NaN: nothing moves, and learning goes on as
    if it had not been.
    """
    trouble = {"optim": ADAMW, "steps": 4, "skip": (1, 1), "poison": (2, 1)}
    for result in run_ranks(2, run, Case(model, zero_stage=stage, **trouble)):
        assert result["failed"] == [None, "student", "fake", None]
        assert_same_run(result, reference(**trouble))
        healthy, skipped, poisoned, _ = result["weights"]
        assert_close(part(skipped, "student"), part(healthy, "student"), 0)
        assert_close(poisoned, skipped, 0)


@pytest.mark.parametrize(
    "change", [{"threshold": 100}, {"zero_stage": 2}], ids=["zero-3", "zero-2"]
)
@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(model, tmp_path, change):
    case = Case(model, optim=ADAMW, steps=4, **change)
    whole = run_ranks(2, run, replace(case, save=str(tmp_path)))
    resumed = run_ranks(2, run, replace(case, load=str(tmp_path)))
    for rank in (0, 1):
        assert (
            resumed[rank]["log"] == whole[rank]["log"][2:]
            and resumed[rank]["updates"] == whole[rank]["updates"]
        )
        assert_close(resumed[rank]["weights"][-1], whole[rank]["weights"][-1], 0)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.slow
def test_a_run_goes_on_with_fewer_ranks_and_then_with_more(model, reference, tmp_path, stage):
    """2 -> 1 -> 2 ranks: each part continues the last, in the numbers of the run in one process."""
    case, whole = (
        Case(model, optim=ADAMW, steps=6, zero_stage=stage),
        reference(optim=ADAMW, steps=6),
    )
    parts = [(2, 0, 2), (1, 2, 4), (2, 4, 6)]
    for ranks, first, last in parts:
        here = replace(
            case,
            load=str(tmp_path / str(first)) if first else None,
            save=str(tmp_path / str(last)),
            span=(first, last),
        )
        for result in run_ranks(ranks, run, here):
            assert_same_run(
                result,
                {
                    name: value[first:last] if isinstance(value, list) else value
                    for name, value in whole.items()
                }
                | {"updates": result["updates"]},
            )


@pytest.mark.parametrize("stage, losses, weights", [(2, 1e-5, 1e-5), (3, 5e-2, 2e-3)])
@pytest.mark.slow
def test_bfloat16_weights_under_float32_adapters_train_as_in_one_process(
    model, reference, stage, losses, weights
):
    """ZeRO-3 rounds once more in every linear layer: it adds the bias to the rounded product."""
    for result in run_ranks(2, run, Case(model, dtype="bfloat16", zero_stage=stage)):
        assert_same_run(result, reference(dtype="bfloat16"), losses=losses, weights=weights)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.slow
def test_float16_arithmetic_trains_as_in_one_process(model, reference, stage):
    for result in run_ranks(2, run, Case(model, dtype="float16", zero_stage=stage)):
        assert_same_run(result, reference(dtype="float16"), losses=5e-2, weights=2e-3)


@pytest.mark.parametrize(
    "backend, stage", [("torch", 0), ("deepspeed", 0), ("deepspeed", 2), ("deepspeed", 3)]
)
@pytest.mark.slow
def test_a_loss_scale_that_overflows_is_halved_until_it_fits_and_the_run_goes_on(
    model, backend, stage
):
    ranks = 1 if backend == "torch" else 2
    for result in run_ranks(
        ranks,
        run,
        Case(
            model, backend, dtype="float16", zero_stage=stage, scale=2.0**36, steps=30, optim=ADAMW
        ),
    ):
        assert result["failed"] == [None] * 30, "an overflow of the scale is no failure"
        for role in ("student", "fake"):
            finite = [np.isfinite(row[f"grad_norm/{role}"]) for row in result["log"]]
            assert not any(finite[:3]) and np.mean(finite[-10:]) > 0.7
            assert result["updates"][role] == sum(finite)


def test_without_a_launcher_one_process_answers_for_itself(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = launch.start("auto")
    assert (world.rank, world.size, world.local_rank) == (0, 1, 0)
    assert (
        launch.all_agree(True)
        and not launch.all_agree(False)
        and launch.mean({"a": 2.0}) == {"a": 2.0}
    )
    launch.barrier()
    launch.finish()
    with refused("'deepspeed'"):
        launch.start("deepspeed")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("2"):
        launch.start("none")


def talk() -> list:
    world = launch.start("deepspeed", timeout_minutes=0.5)
    said = [
        launch.all_agree(True),
        launch.all_agree(world.rank == 0),
        launch.mean({"b": float(world.rank), "a": 1.0}),
    ]
    launch.barrier()
    launch.finish()
    return [world.rank, world.size, world.device.type, *said]


def test_ranks_agree_and_average():
    assert run_ranks(2, talk) == [
        [rank, 2, "cpu", True, False, {"b": 0.5, "a": 1.0}] for rank in (0, 1)
    ]


def test_the_configuration_follows_the_optimiser_and_the_dtype():
    choices = {
        "zero_stage": 3,
        "micro_batch": 2,
        "accumulation": 4,
        "trainable": 1000,
        "persistence_threshold": 7,
    }
    config = deepspeed_config(ADAMW, cast_to=None, **choices)
    assert config["gradient_clipping"] == ADAMW.clip and config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 1000,
        "stage3_param_persistence_threshold": 7,
    }
    assert "torch_autocast" not in config
    assert (
        deepspeed_config(ADAMW, cast_to=torch.bfloat16, **choices)["torch_autocast"]["dtype"]
        == "bfloat16"
    )
