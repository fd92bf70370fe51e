"""The teacher's folder is a pipeline that the stock library loads and runs."""

from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "shapes" / "teacher"


@pytest.fixture(scope="module")
def pipe():
    if not FOLDER.exists():
        pytest.skip("the teacher has not been made: run examples/shapes/make_teacher.py")
    from diffusers import CogVideoXPipeline

    return CogVideoXPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)


def test_the_folder_is_small():
    if not FOLDER.exists():
        pytest.skip("the teacher has not been made: run examples/shapes/make_teacher.py")
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 20e6


def test_its_scheduler_is_that_of_cogvideox_2b(pipe):
    config = pipe.scheduler.config
    assert (config.prediction_type, config.snr_shift_scale, config.timestep_spacing) == ("v_prediction", 3.0, "trailing")
    assert pipe.scheduler.alphas_cumprod[-1] == 0


def test_the_stock_pipeline_samples_what_the_caption_says(pipe):
    from shapes import judge, world

    pipe.set_progress_bar_config(disable=True)
    things = [world.parse("a red triangle moving left"), world.parse("a cyan square moving right")]
    frames = pipe(
        [world.caption(t) for t in things], num_inference_steps=20, guidance_scale=2.0, max_sequence_length=16,
        num_frames=9, height=64, width=64, output_type="pt", generator=torch.Generator().manual_seed(0),
    ).frames
    assert frames.shape == (2, 9, 3, 64, 64)
    right = judge.attributes(judge.load_judge(), frames.transpose(1, 2) * 2 - 1, things)
    assert right["colour"].all() and right["direction"].all()
