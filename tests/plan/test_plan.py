"""A plan states what its run would do, and rejects what the run would reject."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.backbones.registry import load_backbone
from tdmvid.config import load_config
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.plan.plan import PASSING
from tdmvid.plan.remedies import check_fit
from tdmvid.plan.storage import count_storage
from tdmvid.plan.units import GIB
from tdmvid.train.trainer import train

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.json"))
QUICK = ("shapes_4nfe", "cogvideox2b_4nfe")
"""Configs that are planned in the quick suite."""
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
    assert "launch with" not in plan(tiny_run(tmp_path)) and re.search(
        r"launch with +torchrun .* \(parallel\S+ needs a launcher\)",
        plan(tiny_run(tmp_path, change)),
    )


def test_a_plan_writes_nothing(tiny_run, tmp_path, plan):
    plan(tiny_run(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_as_large_as_its_largest_moment(tiny_run, tmp_path, planned):
    """The phases cover whole weights before they are sharded, samples, and the check of the export
    next to what remains of the run.
    """
    made = planned(tiny_run(tmp_path, "ema=0.9"))
    moments, memory = made.moments(), made.memory()
    passing = math.fsum(memory.get(name, 0.0) for name in PASSING)
    assert moments["training"] == math.fsum(memory.values()) and moments[
        "making samples"
    ] == moments["training"] - passing + made.pictures(1)
    rest = (
        memory["trained weights, float32"]
        + memory["optimiser"]
        + memory["average"]
        + memory["autoencoder"]
        + memory["buffers"]
    )
    assert moments["checking the export"] == rest + made.whole + made.pictures(
        1
    )  # the run's own base is in CPU memory
    assert moments["embedding the prompts"] == made.pipeline.text > 0
    four = planned(tiny_run(tmp_path, "ema=0.9"), ranks=4).moments()
    assert (
        four["loading the base"]
        == moments["loading the base"]
        == made.whole
        == memory["frozen weights"]
    )
    whole = memory["autoencoder"] + memory["buffers"]
    trained = memory["trained weights, float32"]  # and DeepSpeed's master weights and buckets
    assert four["checking the export"] == whole + (rest - whole) / 4 + (
        trained / 4 + trained
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
    assert guided.pictures(1) == 3 * guided.calls.network.ungraded
    assert (
        guided.moments()["making samples"] - alone.moments()["making samples"]
        == 3 * guided.calls.network.ungraded
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
    with refused("GiB", "parallel.gradient_checkpointing=true"):  # tiling would not help here
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
    with refused("parallel.backend='none'", "not on 2"):
        planned(tiny_run(tmp_path, "parallel.backend=none"), ranks=2)


def rows_of(text):
    """Return the rows of a plan by label. A row without a label continues the row above."""
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
        # twice the input channels, 16 more for 2 x 2 patches of 3072 channels
        "cogvideox5b_i2v_4nfe": (5_570_283_072 + 16 * 4 * 3072, 17_776),
        # an embedding of `ofs` beside the input channels
        "cogvideox1.5_5b_i2v_4nfe": (5_571_594_880, 45_106),
        "sd3_4nfe": (2_028_328_000, 4_429),
        "sd35_4nfe": (2_243_171_520, 4_429),
        "z_image_4nfe": (6_154_908_736, 4_608),
        "flux2_klein_4nfe": (3_875_544_576, 4_608),
        "flux1_dev_4nfe": (11_901_408_320, 4_608),
        "qwen_image_4nfe": (20_430_401_088, 4_608),
        "hunyuan_video1.5_4nfe": (8_326_608_160, 50_546),
        "wan1.3b_4nfe": (1_418_996_800, 32_760),
        "wan14b_4nfe": (14_288_491_584, 32_760),
        "wan2.1_i2v_14b_4nfe": (16_394_878_784, 32_760),
        "wan2.1_i2v_14b_720p_4nfe": (16_394_878_784, 75_600),
        "wan2.2_5b_4nfe": (4_999_787_712, 27_280),
        "wan2.2_5b_i2v_4nfe": (4_999_787_712, 27_280),
        "wan2.2_a14b_4nfe": (2 * 14_288_491_584, 32_760),
        "wan2.2_i2v_a14b_4nfe": (2 * (14_288_491_584 + 20 * 4 * 5120), 32_760),
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
        "z_image": 4_022_468_096,
        "flux2": 4_022_468_096,
        "flux1": 123_060_480 + 4_762_310_656,
        "qwen_image": 8_292_166_656,
        "hunyuan": 7_070_619_136 + 219_314_944,
        "sd15": 123_060_480,
        "pixart": 4_762_310_656,
    }
    assert made.pipeline.text == 2 * next(
        (count for name, count in text.items() if path.stem.startswith(name)),
        made.pipeline.text / 2,
    )
    if path.stem.startswith("hunyuan"):  # the prompt, and quoted text
        assert made.pipeline.embedding == 2 * (1000 * 3584 + 256 * 1472)
    assert made.total() < 80 * GIB and re.search(
        "peak memory .* of 80 GiB", describe(made, device_memory=80)
    )


@pytest.mark.parametrize(
    "ranks, sequence, row",
    [
        (1, 1, "ranks +1, without DeepSpeed"),
        (8, 1, "ranks +8: 8 data parallel, ZeRO-3"),
        (8, 4, "ranks +8: 2 data parallel x 4 sequence parallel, ZeRO-3"),
    ],
)
def test_the_plan_says_how_ranks_share_the_work(tiny_run, tmp_path, ranks, sequence, row, plan):
    text = plan(tiny_run(tmp_path, f"parallel.sequence={sequence}"), ranks=ranks)
    assert re.search(f"^{row}$", text, re.M)


def test_the_plan_says_if_one_rank_uses_deepspeed(tiny_run, tmp_path, plan):
    text = plan(tiny_run(tmp_path, "parallel.offload=all"))
    assert re.search("^ranks +1, with DeepSpeed, ZeRO-3$", text, re.M)


def test_the_disk_row_counts_the_latents_of_real_videos(tiny_run, tmp_path):
    """The latents that training caches have the planned size."""
    config = tiny_run(tmp_path / "run", "objective.kind=gan", f"real.path={tmp_path}")
    for number in range(3):
        (tmp_path / f"{number}.mp4").touch()
    plan = make_plan(config)
    backbone = load_backbone(config.model, config.video)
    clip = torch.zeros(1, 3, config.video.frames, config.video.height, config.video.width)
    latents = backbone.encode(clip)
    assert count_storage(plan).real == 3 * latents.nbytes
    assert "of real latents" in describe(plan)
    assert count_storage(make_plan(tiny_run(tmp_path / "run"))).real == 0


def test_the_plan_writes_numbers_as_people_do(tiny_run, tmp_path, planned):
    """The singular is used for one item, and numbers have thousands separators instead of
    exponents.
    """
    made = planned(tiny_run(tmp_path, "batch.micro=1"))
    call = replace(made.calls.network, forward_flops=4e14)
    text = describe(replace(made, calls=replace(made.calls, network=call)))
    assert (
        re.search(r"^steps +[\d,]+ iterations of 1 video$", text, re.M)
        and "backward passes of 1 video x 1" in text
    )
    assert re.search(r"^compute +\d,\d{3} TFLOP", text, re.M) and "e+" not in text


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
