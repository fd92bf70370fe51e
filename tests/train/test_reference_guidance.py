"""A run's long reference samples have the guidance of its training: that of the stock call."""

import json

import pytest
import torch
from families import wan
from scales import assert_close

from tdmvid.config import load_config
from tdmvid.parallel import launch
from tdmvid.train.finalize import _sample_teacher, _teacher_grids
from tdmvid.train.run import build_run

STEPS, CFG, LOW, HIGH = 5, 4.0, 0.35, 0.9


def set_scale(pipeline, step, timestep, tensors):
    """Set the scale of an interval before each step but the first."""
    following = 1 - min(step + 1, STEPS - 1) / STEPS
    pipeline._guidance_scale = CFG if LOW <= following <= HIGH else 1.0
    return tensors


DYNAMIC = ["objective.use_dynamic_cfg=true"], {"use_dynamic_cfg": True}
INTERVAL = [f"objective.cfg_interval=[{LOW},1.0]"], {"callback_on_step_end": set_scale}


def compare(config, **call):
    """Return a run's reference samples, and those of its stock pipeline."""
    run = build_run(config, launch.start("none"))
    [grid, _] = _teacher_grids(run)
    z = torch.randn(1, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(3))
    found = _sample_teacher(run, z, grid).latents
    pipeline = run.backbone.stock.whole_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = run.backbone.student_scheduler(grid)
    expected = pipeline(
        prompt=[item.prompt for item in run.gallery_items],
        latents=z,
        num_inference_steps=STEPS,
        guidance_scale=CFG,
        output_type="latent",
        return_dict=False,
        **run.backbone.stock.arguments(),
        **call,
    )[0]
    return found, expected.float()


@pytest.mark.parametrize("settings, call", [DYNAMIC, INTERVAL], ids=["dynamic", "interval"])
def test_a_schedule_reaches_the_reference_samples(tiny_run, tmp_path, settings, call):
    own = [f"objective.cfg={CFG}", f"log.teacher_steps={STEPS}"]
    config = tiny_run(tmp_path / "a", *own, *settings)
    found, expected = compare(config, **call)
    assert_close(found, expected, 1e-4)
    plain, _ = compare(tiny_run(tmp_path / "b", *own))
    assert (found - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.slow
def test_each_expert_of_the_reference_samples_has_its_own_scale(tmp_path):
    torch.manual_seed(0)
    wan.build("experts").save_pretrained(tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    size, second = wan.SIZE, 1.5
    settings = {
        "model": {"path": str(tmp_path / "base")},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "prompts": {"path": str(tmp_path / "prompts.txt"), "cache": str(tmp_path / "cache")},
        "grid": {"kind": "shifted", "shift": 2.0},
        "objective": {"cfg": CFG, "cfg_2": second},
        "lora": {"rank": 2},
        "log": {"sample_prompts": ["a circle"], "teacher_steps": STEPS, "teacher_shift": 3.0},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    config = load_config(tmp_path / "tiny.json")
    found, expected = compare(config, guidance_scale_2=second)
    assert_close(found, expected, 1e-4)
    _, same = compare(config, guidance_scale_2=CFG)
    assert (found - same).norm() > 1e-3 * same.norm()
