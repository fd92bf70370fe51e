"""Runs of every family: three iterations, the exports and the plan."""

import json

import pytest
import torch
from cards import run_card
from contract_cases import PROMPTS, noise
from scales import assert_close

from tdmvid.adapters.load import load_student
from tdmvid.adapters.lora import attach, start_from
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.discriminator import Discriminator
from tdmvid.backbones.registry import families
from tdmvid.config import LoraSettings, load_config
from tdmvid.data.video import write_image, write_video
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.train.run import build_run
from tdmvid.train.trainer import train


@pytest.fixture(scope="module")
def run_json(case, tmp_path_factory):
    """The config file of a run with three steps."""
    folder, size = tmp_path_factory.mktemp("run"), case.size
    prompts = case.write_prompts(folder)
    (folder / "tiny.json").write_text(
        json.dumps(
            {
                "model": {"path": str(case.folder)},
                "video": {"frames": size.frames, "height": size.height, "width": size.width},
                "prompts": {"path": str(prompts), "cache": str(folder / "cache")},
                "out": str(folder / "out"),
                "grid": {"kind": "shifted", "shift": 2.0},
                "objective": {"cfg": 2.0},
                "steps": 3,
                "batch": {"micro": 2},
                "lora": {"rank": 2, "alpha": 4},
                "student": {"lr": 1e-2},
                "fake": {"lr": 1e-2},
                "log": {
                    "checkpoint_every": 0,
                    "sample_every": 0,
                    "sample_prompts": PROMPTS,
                    "teacher_steps": 2,
                },
            }
        )
    )
    return folder / "tiny.json"


@pytest.fixture(scope="module")
def trained(run_json):
    """The folder of the finished run."""
    return train(load_config(run_json))


def user_s_pipeline(case, lora, base=None):
    """Run the model card's code up to the call, and return its pipeline.

    Args:
        case: The tiny pipeline.
        lora: The student's folder.
        base: Another base to load it on.
    """
    pipeline = run_card(lora, base or case.folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_three_steps_of_tdm_give_a_lora_that_the_model_card_s_code_loads(case, backbone, trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(
        row["grad_norm/student"] > 0 and row["grad_norm/fake"] > 0 for row in rows
    )
    gallery = json.loads((trained / "gallery" / "gallery.json").read_text())
    pictures = [
        trained / "gallery" / name for column in gallery["columns"] for name in column["videos"]
    ]
    kind, given = ".png" if case.size.frames == 1 else ".mp4", 2 * backbone.takes_images
    assert [path.suffix for path in pictures] == [".png"] * given + [kind] * 6
    assert all(path.stat().st_size > 100 for path in pictures)
    facts, z = json.loads((trained / "lora" / "export.json").read_text()), noise(backbone)
    assert facts["error"] <= facts["tolerance"] and 1e-5 <= facts["tolerance"] < 1e-4
    theirs = case.sample(user_s_pipeline(case, trained / "lora"), backbone, z)
    lean = backbone.stock.pipeline()
    lean.scheduler = backbone.student_scheduler(shifted(4, 2.0, backbone.process))
    plain = backbone.stock.latents(lean, z, case.cond(backbone), steps=4)
    load_student(lean, trained / "lora", backbone.lora)
    ours = backbone.stock.latents(lean, z, case.cond(backbone), steps=4)
    assert_close(ours, theirs, 1e-4)
    assert (theirs - plain).norm() > 1e-3 * plain.norm()  # give the LoRA an effect


@pytest.mark.slow
def test_a_set_of_step_counts_gives_a_checked_lora_for_each(case, run_json, tmp_path):
    changes = ["steps=2", "objective.step_set=[2,4]", f"out={tmp_path}"]
    if case.experts:  # each K's grid needs a time below the boundary
        changes.append("grid.shift=6.09")
    train(load_config(run_json, changes))
    facts = [
        json.loads((tmp_path / name / "export.json").read_text())
        for name in ("lora_2steps", "lora")
    ]
    assert [one["steps"] for one in facts] == [2, 4] and all(
        one["error"] <= one["tolerance"] for one in facts
    )


@pytest.mark.slow
def test_three_steps_with_an_adversarial_term_move_the_discriminator_s_heads_alone(
    case, run_json, tmp_path
):
    case.need_one_network()
    for number in range(3):
        clip = (
            torch.rand(3, case.size.frames, 40, 50, generator=torch.Generator().manual_seed(number))
            * 2
            - 1
        )
        if case.size.frames == 1:
            write_image(tmp_path / "real" / f"{number}.png", clip[:, 0])
        else:
            write_video(tmp_path / "real" / f"{number}.mp4", clip, fps=8)
    changes = [
        "objective.kind=gan",
        f"real.path={tmp_path / 'real'}",
        f"real.cache={tmp_path / 'latents'}",
        f"out={tmp_path / 'out'}",
        "discriminator.lr=0.001",
    ]
    trained = {}
    train(load_config(run_json, changes), at_end=lambda run: trained.update(vars(run)))
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 3 and all(
        row["grad_norm/discriminator"] > 0 and row["adversarial/student"] for row in rows
    )
    critic, other = trained["engines"]["discriminator"].module, case.backbone()
    fresh = Discriminator(other.network, other.discriminator_trunk(other.network), seed=2)
    kept, moved = (
        [torch.equal(a, b) for a, b in zip(part(critic), part(fresh), strict=True)]
        for part in (
            lambda made: made.network.parameters(),
            lambda made: (p for p in made.heads.parameters() if p.dim() == 2),
        )
    )
    assert all(kept) and not any(moved)


@pytest.mark.slow
def test_a_whole_network_is_trained_and_exported_as_a_folder_of_the_library(
    run_json, tmp_path, case, capsys
):
    case.need_one_network()
    train(load_config(run_json, ["training=full", "steps=1", "student.lr=1e-5", f"out={tmp_path}"]))
    assert "reloaded in a stock pipeline: relative difference" in capsys.readouterr().out
    saved = json.loads((tmp_path / "student" / "config.json").read_text())
    assert saved["_class_name"] == families()[case.name].spec.network_class.__name__


@pytest.mark.slow
def test_a_lora_goes_to_another_base_of_its_family(case, trained, tmp_path):
    torch.manual_seed(1)
    other = case.backbone(case.another_base(tmp_path))
    grid, z, cond = shifted(4, 2.0, other.process), noise(other), case.cond(other)
    plain = ddim(other.denoiser(other.network), z, cond, grid)
    theirs = case.sample(user_s_pipeline(case, trained / "lora", base=tmp_path), other, z)
    settings, found = (
        LoraSettings(rank=2, alpha=3),
        read_lora(trained / "lora", other.lora, other.network),
    )
    student = attach(other.network, settings, other.lora_targets, seed=0)
    start_from(student, settings, found, where="the LoRA")
    ours = ddim(other.denoiser(student), z, cond, grid)
    assert (theirs - plain).norm() > 1e-3 * plain.norm()
    assert_close(ours, theirs, 1e-4)


def _full_length(cond):
    """Return conditions whose text is as long as the plan assumes."""
    return Cond({name: x.bool() | True if x.dtype == torch.bool else x for name, x in cond.items()})


@pytest.mark.slow
def test_a_plan_counts_the_parameters_and_the_work_of_a_real_call(case, run_json, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    from tdmvid.plan import cost as trace

    config = load_config(run_json, [f"out={tmp_path}"])
    made, run = make_plan(config), build_run(config, launch.start("none"))
    student = run.engines["student"]
    x, t = noise(run.backbone), torch.ones(2)
    with FlopCounterMode(display=False, custom_mapping=trace.ATTENTION_ON_A_CPU) as counter:
        run.roles.student(x, t, _full_length(run.gallery))
    assert made.calls.network.forward_flops == counter.get_total_flops() > 1e5
    assert made.weights.trainable == sum(p.numel() for p in student.trainable.values())
    assert (
        made.weights.base
        == sum(p.numel() for p in student.module.parameters()) - made.weights.trainable
    )
    assert 0 < made.calls.network.checkpointed.kept < made.calls.network.plain.kept
