"""The plan tells what the run then does: network calls are counted in the real loop, parameters in
the real networks.
"""

import itertools
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from refusals import refused
from torch.utils.flop_counter import FlopCounterMode

from tdmvid.config import load_config, share_batch
from tdmvid.diffusion.denoiser import Guided
from tdmvid.distill.iteration import Place, iterate, pick_k
from tdmvid.distill.objective import build_objective
from tdmvid.parallel import launch
from tdmvid.plan import cost
from tdmvid.plan.counts import calls_per_iteration
from tdmvid.plan.describe import describe
from tdmvid.plan.plan import make_plan
from tdmvid.plan.remedies import _changed, check_fit
from tdmvid.plan.units import GIB
from tdmvid.train.monitor import read_metrics
from tdmvid.train.run import build_run
from tdmvid.train.trainer import _micro_batches, train

STEPS, MICRO = 2, 2
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.json"))
QUICK = ("shapes_4nfe", "cogvideox2b_4nfe")
"""Configs whose plans the quick suite makes."""


@pytest.fixture(scope="module")
def traced(tiny_run, tmp_path_factory):
    """A plan of the tiny run: others of this file do not trace again what costs the same."""
    return make_plan(tiny_run(tmp_path_factory.mktemp("traced")))


@pytest.fixture
def planned(traced):
    return partial(make_plan, like=traced)


@pytest.fixture
def plan(planned):
    """`plan(config)`: the plan as text."""
    return lambda config, **choices: describe(planned(config, **choices))


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return build_run(
        tiny_run(tmp_path_factory.mktemp("plan"), f"batch.micro={MICRO}"), launch.start("none")
    )


class Counted:
    """Whole-batch forwards (a guided call is two) and backwards of the engines, while it is
    entered.
    """

    def __init__(self, engines):
        self.engines, self.forwards, self.backwards = engines, 0.0, 0

    def __enter__(self):
        self.hooks = [
            e.module.register_forward_pre_hook(self._forward, with_kwargs=True)
            for e in self.engines.values()
        ]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _forward(self, module, args, kwargs):
        self.forwards += len(kwargs["hidden_states"]) / MICRO

    def backward(self, engine):
        counted = self

        class Wrapped:
            def backward(self, loss):
                counted.backwards += 1
                engine.backward(loss)

            def step(self, **options):
                return engine.step(**options)

        return Wrapped()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "fake_updates, draws, fake_trajectories",
    [(1, "own", "same"), (2, "own", "same"), (3, "own", "fresh"), (1, "shared", "same")],
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_the_planned_calls_are_those_of_the_loop(
    run, rollout, cfg, fake_updates, draws, fake_trajectories, accumulation
):
    objective = replace(
        run.config.objective,
        rollout=rollout,
        cfg=cfg,
        fake_updates=fake_updates,
        draws=draws,
        fake_trajectories=fake_trajectories,
    )
    config = replace(
        run.config, objective=objective, batch=replace(run.config.batch, accumulation=accumulation)
    )
    run = replace(
        run,
        config=config,
        roles=replace(run.roles, teacher=Guided(run.roles.teacher.denoiser, run.null, cfg)),
    )
    forwards, backwards = calls_per_iteration(config)
    grid, expected, own_trajectories = config.grid.steps, 0.0, objective.own_trajectories
    with Counted(run.engines) as counted:
        engines = {role: counted.backward(engine) for role, engine in run.engines.items()}
        for step in range(STEPS):
            iterate(
                step,
                _micro_batches(run, step),
                (MICRO, *run.backbone.latent_shape()),
                objective=build_objective(objective),
                roles=run.roles,
                engines=engines,
                grid=run.grid,
                streams=run.streams,
            )
            # The plan has the mean over k of K - k calls; here every k is known.
            expected += accumulation * forwards
            for micro, own in itertools.product(range(accumulation), range(own_trajectories + 1)):
                place = Place(step, micro, micro, own)
                k = pick_k(place, objective, run.grid, MICRO, run.streams)[0]
                expected += (grid - int(k)) - (grid - 1) / 2 if rollout == "stop" else 0
    assert counted.forwards == expected
    assert counted.backwards == accumulation * STEPS * backwards


def test_with_guidance_four_steps_cost_six_and_a_half_forwards(tiny_run, tmp_path):
    assert calls_per_iteration(tiny_run(tmp_path, "objective.cfg=3")) == (6.5, 2)
    assert calls_per_iteration(tiny_run(tmp_path, "objective.cfg=3", "objective.rollout=full")) == (
        8,
        2,
    )
    assert calls_per_iteration(tiny_run(tmp_path, "objective.cfg=3", "objective.draws=shared")) == (
        5.5,
        2,
    )


def test_a_run_records_the_calls_that_were_planned(tiny_run, tmp_path, loop_only):
    train(
        tiny_run(
            tmp_path, "objective.cfg=3", "objective.rollout=full", "batch.accumulation=2", "steps=2"
        )
    )
    assert read_metrics(tmp_path / "metrics.jsonl")["calls"] == [
        9.0,
        9.0,
    ]  # 8, and the graded call again for each micro-batch


def test_an_explicit_grid_counts_its_timesteps(tiny_run, tmp_path, plan):
    config = tiny_run(
        tmp_path, "grid.kind=explicit", "grid.timesteps=[999,499]", "objective.rollout=full"
    )
    assert calls_per_iteration(config)[0] == 1 + 1 + 1 + 1 + 1
    assert re.search("student +2 steps, explicit grid", plan(config))


def numbers(text, pattern):
    return int(re.search(pattern, text)[1].replace(",", ""))


def test_the_planned_parameters_and_tokens_are_those_of_the_networks(run, plan):
    text, student = plan(run.config), run.engines["student"]
    adapters = sum(p.numel() for p in student.trainable.values())
    base = sum(p.numel() for p in student.module.parameters()) - adapters
    assert numbers(text, r"([\d,]+) parameters in float32") == base > 10_000
    assert (
        numbers(text, r"([\d,]+) trainable parameters each")
        == adapters
        == sum(p.numel() for p in run.engines["fake"].trainable.values())
    )
    tokens = []
    hook = student.module.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(
            sum(kwargs[name].shape[1] for name in ("hidden_states", "encoder_hidden_states"))
        ),
        with_kwargs=True,
    )
    run.roles.student(torch.randn(1, *run.backbone.latent_shape()), torch.ones(1), run.null)
    hook.remove()
    assert numbers(text, r"tokens +([\d,]+) per video") == tokens[0]


@pytest.mark.slow
def test_whole_networks_are_planned_as_such(tiny_run, tmp_path, plan):
    text = plan(tiny_run(tmp_path, "training=full"))
    assert (
        numbers(text, r"([\d,]+) parameters in") == numbers(text, r"([\d,]+) trainable")
        and "3 whole networks" in text
    )


@pytest.mark.parametrize(
    "changes",
    [(), ("objective.step_set=[2,4]",), ("training=full",)],
    ids=["lora", "told K", "full"],
)
def test_the_planned_trainable_parameters_are_those_of_each_role(
    tiny_run, tmp_path, changes, planned
):
    config = tiny_run(tmp_path, *changes)
    expected, run = planned(config).weights.trainable, build_run(config, launch.start("none"))
    assert [
        sum(p.numel() for p in run.engines[role].trainable.values()) for role in ("student", "fake")
    ] == [expected, expected]


REFUSED = (
    'lora.targets=["no_layer"]',
    'lora.targets=["transformer_blocks"]',
    'lora.targets=[""]',
    "lora.rank=100000",
    "init={folder}",
    "objective.kind=gan real.path={folder}",
    "objective.kind=gan real.path=nowhere",
    "log.teacher_steps=1001",
    "log.teacher_shift=0",
    "grid.steps=1001",
    "objective.step_set=[1,2]",
    "prompts.path={folder}",
    "prompts.cache={file}",
    "real.cache={file}/cache",
    "out={file}",
    "video.height=40",
    "parallel.sequence=2",
    "training=full objective.step_set=[4]",
    "model.revision=main",
)


@pytest.mark.parametrize("changes", REFUSED)
def test_a_run_refuses_what_its_plan_does_in_the_same_words_and_before_any_work(
    tiny_run, tmp_path, changes
):
    folder, file, run = tmp_path / "folder", tmp_path / "file", tmp_path / "run"
    folder.mkdir()
    file.touch()
    changes = changes.format(folder=folder, file=file).split()
    said = []
    for refuse in (make_plan, train):
        with pytest.raises(ValueError) as found:
            refuse(
                tiny_run(
                    run,
                    f"prompts.cache={tmp_path / 'embeddings'}",
                    f"real.cache={tmp_path / 'latents'}",
                    *changes,
                )
            )
        said.append(str(found.value))
    assert said[0] == said[1] and any(word in said[0] for word in changes[-1].split("="))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("change", ["parallel.offload=optimizer", "parallel.backend=deepspeed"])
def test_a_plan_says_what_needs_a_launcher(tiny_run, tmp_path, change, plan):
    assert "start with" not in plan(tiny_run(tmp_path)) and re.search(
        r"start with +a launcher, for parallel\S+: torchrun", plan(tiny_run(tmp_path, change))
    )


def test_a_plan_writes_nothing(tiny_run, tmp_path, plan):
    plan(tiny_run(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def kept_by_autograd(network, call) -> int:
    """Bytes of activations that a real forward keeps for its backward."""
    storages = {
        p.untyped_storage().data_ptr(): 0 for p in (*network.parameters(), *network.buffers())
    }

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    assert out.requires_grad
    return sum(storages.values())


def test_the_planned_activations_and_work_are_those_of_a_real_call(run):
    made, student = make_plan(run.config), run.engines["student"]
    x, t = torch.randn(MICRO, *run.backbone.latent_shape()), torch.ones(MICRO)
    with FlopCounterMode(display=False, custom_mapping=cost.ATTENTION_ON_A_CPU) as counter:
        kept = kept_by_autograd(
            student.module, lambda: run.roles.student(x, t, run.null.expand(MICRO))
        )
    assert made.calls.network.forward_flops == counter.get_total_flops() > 1e5
    assert made.calls.network.saved == pytest.approx(
        kept, rel=0.02
    )  # converting v to x0 keeps a little more


@pytest.mark.slow
def test_checkpointing_keeps_less_and_a_second_rank_takes_its_share(tiny_run, tmp_path, planned):
    one = planned(tiny_run(tmp_path))
    two = planned(tiny_run(tmp_path, "parallel.sequence=2"), ranks=2)
    inside = one.calls.network.saved - one.calls.network.saved_checkpointed
    assert inside > 0 and two.calls.network.saved < 0.7 * one.calls.network.saved
    assert two.calls.network.forward_flops < 0.7 * one.calls.network.forward_flops
    assert two.traffic()["tokens"] > 0 and one.traffic() == {}


def test_only_one_graph_computes_a_block_again_at_a_time(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "parallel.gradient_checkpointing=true"))
    call = made.calls.network
    assert (
        made.graphs == 2
        and made.memory()["activations"]
        == 2 * call.saved_inputs + call.saved_block * 3 // 2
        < 2 * call.saved_checkpointed
    )


@pytest.mark.parametrize("stage, trained", [(0, 2), (1, 3), (2, 3), (3, 1)])
def test_a_ring_adds_gradients_up_and_spreads_what_is_not_sharded(
    tiny_run, tmp_path, stage, trained, planned
):
    made = planned(tiny_run(tmp_path, f"parallel.zero_stage={stage}"), ranks=4)
    traffic = made.traffic()
    assert (
        traffic["gradients"] + traffic["updated weights"]
        == trained * 2 * made.weights.trainable * 4 * 3 / 4
    )


def test_zero_3_shares_weights_and_optimiser_among_ranks(tiny_run, tmp_path, planned):
    one, four = (planned(tiny_run(tmp_path, "ema=0.9"), ranks=ranks).memory() for ranks in (1, 4))
    for name in ("frozen weights", "trained weights, float32", "gradients", "optimiser", "average"):
        assert four[name] == one[name] / 4
    assert (
        "optimiser"
        not in planned(tiny_run(tmp_path, "parallel.offload=optimizer"), ranks=4).memory()
    )


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_remedy_that_fits(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "batch.micro=64"))
    checkpointed = planned(
        tiny_run(tmp_path, "batch.micro=64", "parallel.gradient_checkpointing=true")
    )
    assert checkpointed.total() < made.total()
    limit = (checkpointed.total() + made.total()) / 2 / GIB
    with refused("GiB", "parallel.gradient_checkpointing=true"):
        check_fit(made, limit)
    check_fit(checkpointed, limit)
    with refused("GiB", "loading the base", "no setting"):
        check_fit(made, 1e-9)


def test_a_base_that_fits_in_bfloat16_alone_is_told_so(tiny_run, tmp_path, planned, monkeypatch):
    monkeypatch.setattr("tdmvid.plan.remedies._remedies", lambda plan: [])
    made, half = (
        planned(tiny_run(tmp_path, f"model.dtype={dtype}")) for dtype in ("float32", "bfloat16")
    )
    limit = (made.total() + half.total()) / 2 / GIB
    with refused("GiB", "model.dtype=bfloat16"):
        check_fit(made, limit)
    check_fit(half, limit)


@pytest.mark.slow
def test_a_text_encoder_that_does_not_fit_works_ahead_of_the_run(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "model.dtype=bfloat16"))
    made = replace(made, pipeline=replace(made.pipeline, text=10 * GIB))
    rest = max(size for moment, size in made.moments().items() if "embedding" not in moment) / GIB
    with refused("GiB", "tdmvid embed", "CUDA_VISIBLE_DEVICES=''"):
        check_fit(made, rest * 1.01)
    with refused("GiB") as caught:
        check_fit(made, rest * 1e-6)
    assert "tdmvid embed" not in str(caught.value)


def test_less_is_generated_where_no_setting_helps_and_that_was_planned(tiny_run, tmp_path, planned):
    from tdmvid.plan.remedies import Remedy, _smaller

    made = planned(tiny_run(tmp_path, "batch.micro=64"))
    found = next(_smaller(Remedy({}, 1, made)))
    assert str(found) == "batch.micro=32" and found.plan.total() < made.total()


@pytest.mark.slow
def test_a_run_that_trains_but_has_no_room_for_the_rest_is_told_where_to_export(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("tdmvid.plan.counts._autoencoder", lambda *_: (0, GIB))
    made = make_plan(tiny_run(tmp_path))
    assert made.narrowest != "training"
    with refused("checkpoint", "tdmvid export"):
        check_fit(made, 0.5)
    with refused("GiB") as caught:
        check_fit(made, 1e-9)
    assert "tdmvid export" not in str(caught.value)


@pytest.mark.slow
def test_a_remedy_that_takes_more_ranks_says_so(tiny_run, tmp_path, monkeypatch):
    """Whatever else is left out of it because it is not needed: sharding over the new ranks is part
    of what helps.
    """
    monkeypatch.setattr("tdmvid.plan.counts._autoencoder", lambda *_: (0, 1000))
    settings = ("training=full", "log.sample_count=1", "parallel.gradient_checkpointing=true")
    alone = make_plan(tiny_run(tmp_path, *settings, "parallel.offload=all"))
    shared = make_plan(
        tiny_run(tmp_path, *settings, "parallel.offload=all", "parallel.sequence=2"), ranks=2
    )
    assert shared.total() < alone.total()
    with refused("parallel.sequence=2", "2 ranks"):
        check_fit(
            make_plan(tiny_run(tmp_path, *settings)), (shared.total() + alone.total()) / 2 / GIB
        )


def test_a_remedy_that_the_run_cannot_have_is_passed_over(tiny_run, tmp_path, planned):
    made = planned(
        tiny_run(
            tmp_path, "objective.kind=fisher", "objective.distance=huber", "parallel.zero_stage=2"
        ),
        ranks=8,
    )
    with refused("GiB", "no setting"):  # it has neither ZeRO-3 nor shared tokens
        check_fit(made, 1e-9)


def test_what_needs_a_launcher_is_refused_as_it_would_be_there(tiny_run, tmp_path, planned):
    offload = "parallel.offload=all"
    for change in ("parallel.compile=true", "objective.kind=fisher"):
        with refused("zero_stage"):
            planned(tiny_run(tmp_path, offload, change))
    checkpointed = "parallel.gradient_checkpointing=true"
    made, fits = (
        planned(tiny_run(tmp_path, checkpointed, "parallel.compile=true")),
        planned(tiny_run(tmp_path, checkpointed, offload)),
    )
    with refused("GiB", "parallel.compile=false", "parallel.offload=all"):
        check_fit(made, fits.total() / GIB)


def test_kept_attention_is_given_up_first(tiny_run, tmp_path, planned):
    settings = ("batch.micro=64", "parallel.gradient_checkpointing=true")
    plain, kept = (
        planned(tiny_run(tmp_path, *settings)),
        planned(tiny_run(tmp_path, *settings, "parallel.keep_attention=true")),
    )
    assert plain.total() < kept.total()
    with refused("GiB", "parallel.keep_attention=false"):
        check_fit(kept, (plain.total() + kept.total()) / 2 / GIB)


def test_a_run_is_as_large_as_its_largest_moment(tiny_run, tmp_path, planned):
    """Weights that are whole before they are spread, pictures, and the check of the export beside
    what stays of the run.
    """
    made = planned(tiny_run(tmp_path, "ema=0.9"))
    moments, memory = made.moments(), made.memory()
    passing = memory["activations"] + memory["gradients"]
    assert moments["training"] == math.fsum(memory.values()) and moments[
        "making samples"
    ] == moments["training"] - passing + made.pictures(1)
    rest = (
        memory["trained weights, float32"]
        + memory["optimiser"]
        + memory["average"]
        + memory["autoencoder"]
    )
    assert moments["checking the export"] == rest + made.whole + made.pictures(
        1
    )  # the run's own base is in host memory
    assert moments["embedding the prompts"] == made.pipeline.text > 0
    four = planned(tiny_run(tmp_path, "ema=0.9"), ranks=4).moments()
    assert (
        four["loading the base"]
        == moments["loading the base"]
        == made.whole
        == memory["frozen weights"]
    )
    assert four["checking the export"] == rest - 3 / 4 * (
        rest - memory["autoencoder"]
    ) + made.whole / 4 + made.whole + made.pictures(1)
    assert made.total() == max(moments.values()) == moments[
        made.narrowest
    ] and f"while {made.narrowest}" in describe(made)


def test_samples_take_the_guided_teacher_s_calls_and_the_check_all_tokens_on_one_rank(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("tdmvid.plan.counts._autoencoder", lambda *_: (0, 0))
    prompts = 'log.sample_prompts=["one","two","three"]'
    alone, guided = (
        make_plan(tiny_run(tmp_path, f"objective.cfg={cfg}", prompts)) for cfg in (1, 3)
    )
    assert guided.pictures(1) == 3 * guided.calls.network.saved_block
    assert (
        guided.moments()["making samples"] - alone.moments()["making samples"]
        == 3 * guided.calls.network.saved_block
    )
    assert guided.moments()["checking the export"] == alone.moments()["checking the export"]
    shared = make_plan(tiny_run(tmp_path, "parallel.sequence=2", prompts), ranks=2)
    assert shared.pictures(2) == 2 * shared.pictures(1) < 1.5 * alone.pictures(1)


def test_full_training_holds_a_copy_in_float32_at_both_ends(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "training=full"))
    assert made.moments()["loading the base"] == made.whole + 4 * made.weights.base
    assert (
        made.moments()["checking the export"] > made.whole + 3 * 4 * made.weights.base
    )  # student and fake are still there


@pytest.mark.slow
def test_pictures_are_made_of_tiles_where_that_is_what_does_not_fit(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "tdmvid.plan.counts._autoencoder",
        lambda config, *_: (0, 2**25 if config.model.tiling else 2**26),
    )
    made = make_plan(tiny_run(tmp_path))
    assert made.narrowest in ("making samples", "checking the export")
    with refused("GiB", made.narrowest, "0.05", "0.03", "model.tiling=true"):
        check_fit(made, 0.05)
    many = make_plan(tiny_run(tmp_path, "batch.micro=512"))
    limit = many.moments()["training"] / GIB * 0.999
    assert many.narrowest == "training" and limit > 2**26 / GIB
    with refused("GiB", "parallel.gradient_checkpointing=true"):  # tiles would do nothing for it
        check_fit(many, limit)


def test_a_plan_refuses_what_the_run_would(tiny_run, tmp_path, planned):
    for change, fact in (
        ("parallel.sequence=2", "parallel.sequence=2"),
        ("video.height=33", "video.height=33"),
        ("grid.steps=2000", "2000"),
        ("prompts.path=none.txt", "none.txt"),
        ("video.frames=10", "video.frames=10"),
    ):
        with refused(fact, error=(ValueError, OSError)):
            planned(tiny_run(tmp_path, change))


def rows_of(text):
    """The rows of a plan by name; a row without one goes on with the row above it."""
    rows, name = {}, ""
    for line in text.splitlines():
        head, value = (part.strip() for part in [*line.split("  ", 1), ""][:2])
        name = head or name
        rows[name] = f"{rows.get(name, '')} {value}".strip()
    return rows


@pytest.mark.parametrize(
    "total, ranks, sequence, accumulation", [(8, 1, 1, 4), (8, 2, 1, 2), (8, 4, 2, 2), (8, 4, 1, 1)]
)
def test_a_plan_says_how_the_ranks_share_the_total_batch(
    tiny_run, tmp_path, planned, total, ranks, sequence, accumulation
):
    changes = (f"batch.total={total}", "batch.micro=2", f"parallel.sequence={sequence}")
    made = planned(tiny_run(tmp_path, *changes), ranks=ranks)
    rows = rows_of(describe(made))
    assert made.config.batch.accumulation == accumulation
    assert {"batch.total", "batch.micro=2", f"batch.accumulation={accumulation}"} <= set(
        re.findall(r"batch\.[a-z]+(?:=\d+)?", rows["batch"])
    )
    assert rows["batch"].startswith(f"{total} videos") and rows["steps"].endswith(f"{total} videos")


def test_a_plan_refuses_a_total_that_its_ranks_cannot_make(tiny_run, tmp_path, planned):
    with refused("batch.total=8", "batch.total=6 or 12"):
        planned(tiny_run(tmp_path, "batch.total=8"), ranks=6)


def test_a_remedy_shares_the_total_out_anew(tiny_run, tmp_path):
    """Of two ranks that share each video, one is data parallel."""
    on_two = share_batch(tiny_run(tmp_path, "batch.total=8"), 2)
    together = share_batch(_changed(on_two, {"sequence": 2}), 1)
    assert (on_two.batch.accumulation, together.batch.accumulation) == (4, 8)
    fixed = tiny_run(tmp_path, "batch.accumulation=4")
    assert _changed(fixed, {"sequence": 2}).batch == fixed.batch


@pytest.mark.parametrize("steps, uses", [(100, "50 "), (101, "50.5")])
def test_a_plan_warns_where_prompts_are_repeated_more_than_fifty_times(
    tiny_run, tmp_path, plan, steps, uses
):
    text = rows_of(plan(tiny_run(tmp_path, "batch.total=4", f"steps={steps}")))["prompts"]
    assert text.startswith("8,") and f"used {uses}" in text
    assert ("warning" in text) == (steps > 100)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=pytest.mark.slow if p.stem not in QUICK else (), id=p.stem)
        for p in CONFIGS
    ],
)
def test_every_shipped_config_is_planned_without_weights_or_network(path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.chdir(path.parents[1])
    made = make_plan(load_config(path), ranks=8)
    published = {
        "cogvideox2b_4nfe": (1_693_783_872, 17_776),
        "cogvideox5b_4nfe": (5_570_283_072, 17_776),
        "sd3_4nfe": (2_028_328_000, 4_429),
        "sd35_4nfe": (2_243_171_520, 4_429),
        "wan1.3b_4nfe": (1_418_996_800, 32_760),
        "wan14b_4nfe": (14_288_491_584, 32_760),
        "sd15_4nfe": (859_520_964, 4_096),
        "sdxl_4nfe_512": (2_567_463_684, 1_024),
        "sdxl_4nfe_1024": (2_567_463_684, 4_096),
        "pixart512_4nfe": (610_856_096, 1_024),
        "pixart1024_4nfe": (611_349_152, 4_096),
    }
    assert (made.weights.base, made.tokens.count) == published.get(
        path.stem, (made.weights.base, made.tokens.count)
    )
    text = {
        "cogvideox": 4_762_310_656,
        "wan": 5_680_910_336,
        "sd3": 5_580_620_800,
        "sdxl": 817_720_320,
        "sd15": 123_060_480,
        "pixart": 4_762_310_656,
    }
    assert made.pipeline.text == 2 * next(
        (count for name, count in text.items() if path.stem.startswith(name)),
        made.pipeline.text / 2,
    )
    assert made.total() < 80 * GIB and re.search(
        "at its peak .* of 80 GiB", describe(made, device_memory=80)
    )


@pytest.mark.parametrize(
    "ranks, sequence, row",
    [
        (1, 1, "ranks +1, without DeepSpeed"),
        (8, 1, "ranks +8: 8 data parallel, ZeRO-3"),
        (8, 4, "ranks +8: 2 data parallel x 4 that share a video, ZeRO-3"),
    ],
)
def test_the_plan_says_how_ranks_share_the_work(tiny_run, tmp_path, ranks, sequence, row, plan):
    text = plan(tiny_run(tmp_path, f"parallel.sequence={sequence}"), ranks=ranks)
    assert re.search(f"^{row}$", text, re.M)


def test_the_plan_writes_numbers_as_people_do(tiny_run, tmp_path, planned):
    """One of a thing is no plural, and no power of ten stands where thousands would do."""
    made = planned(tiny_run(tmp_path, "batch.micro=1"))
    call = replace(made.calls.network, forward_flops=4e14)
    text = describe(replace(made, calls=replace(made.calls, network=call)))
    assert (
        re.search(r"^steps +[\d,]+ of 1 video$", text, re.M) and "backwards of 1 video x 1" in text
    )
    assert re.search(r"^work +\d,\d{3} TFLOP", text, re.M) and "e+" not in text


@pytest.mark.parametrize(
    "change, ranks",
    [
        ("batch.micro=3", 1),
        ("lora.rank=3", 1),
        ("training=full", 1),
        ("objective.step_set=[2,4]", 1),
        ("parallel.sequence=2", 2),
        ("parallel.gradient_checkpointing=true", 1),
        ("batch.accumulation=2", 1),
        ("model.attention=float32", 1),
        ("video.frames=17", 1),
    ],
)
def test_what_a_plan_takes_from_another_is_what_it_would_count(
    tiny_run, tmp_path, traced, change, ranks
):
    config = tiny_run(tmp_path, change)
    assert make_plan(config, ranks=ranks, like=traced) == make_plan(config, ranks=ranks)
