"""Time and memory of stages, and the speed-up."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.scoring.latency import STAGES, Stage, compare, end_to_end, measure, stages, table

CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parents[2]


def test_the_first_call_is_not_timed_and_the_median_is_given(monkeypatch):
    clock, calls = iter((0, 1, 10, 13, 20, 22)), itertools.count()
    monkeypatch.setattr("tdmvid.scoring.latency.time.perf_counter", lambda: next(clock))
    stage = measure(lambda: next(calls), CPU, repeats=3)
    assert (stage.seconds, stage.fastest, stage.slowest, next(calls)) == (2, 1, 3, 4)


PEAKS = """
import json, torch
from tdmvid.scoring.latency import measure
def peak(mib):
    def work():
        return torch.zeros(mib * 2**18).add_(1)
    return measure(work, torch.device("cpu"), repeats=1).peak
print(json.dumps([peak(256), peak(1)]))
"""


@pytest.mark.slow
def test_the_peak_is_of_this_stage_and_not_of_an_earlier_one():
    """Runs in a separate process whose allocator returns freed memory."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    large, small = json.loads(done.stdout)
    if small is None:
        pytest.skip("this system does not reset a process's peak of memory")
    assert 200 * 2**20 < large - small < 320 * 2**20


def test_no_repeats_are_refused():
    with refused("repeats=0"):
        measure(lambda: None, CPU, repeats=0)


def test_a_speed_up_of_the_whole_counts_what_did_not_get_faster():
    def stage(seconds, peak=None):
        return Stage(seconds, seconds, seconds, peak)

    timed = {
        "teacher": {"text": stage(1.0, 5), "denoiser": stage(97.0, 9), "autoencoder": stage(2.0)},
        "student": {"text": stage(1.0), "denoiser": stage(2.0), "autoencoder": stage(2.0)},
    }
    found = compare(
        timed, {"teacher": 100, "student": 4}, {"teacher": stage(99.0, 12), "student": stage(6.0)}
    )
    assert (
        found["faster"]
        == {
            "text": 1.0,
            "denoiser": 48.5,
            "autoencoder": 1.0,
            "all": 20.0,
            "end_to_end": 16.5,
        }
        and found["fewer_calls"] == 25
    )
    assert (
        found["samplers"]["student"]["stages"]["autoencoder"]["share"] == 0.4
        and found["samplers"]["teacher"]["peak"] == 9
    )
    text = table(found, 1)
    assert "| faster by | 1.0 x | 48.5 x | 1.0 x | 20.0 x | 16.5 x | 25.0 x fewer |" in text
    assert (
        "The student's whole call takes 20 % more than its stages together" in text
        and "The teacher's" not in text
    )


def test_the_teacher_s_stages_are_those_of_the_stock_pipeline(tiny_cogvideox):
    from tdmvid.backbones.registry import load_backbone
    from tdmvid.config import ClipSize, ModelConfig

    backbone = load_backbone(
        ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32, 8)
    )
    timed = stages(backbone, None, ["a red circle"], steps=3, cfg=2.0, repeats=2)
    assert tuple(timed) == STAGES and all(stage.seconds > 0 for stage in timed.values())


def test_a_whole_call_ends_in_pictures_of_the_stages_latents(tiny_cogvideox, monkeypatch):
    """From the same noise, the stock call that is timed end to end gives the same result as the
    stages.
    """
    from tdmvid.backbones.registry import load_backbone
    from tdmvid.config import ClipSize, ModelConfig
    from tdmvid.sampling.student import use_student

    backbone = load_backbone(
        ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32, 8)
    )
    z = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        "diffusers.pipelines.cogvideo.pipeline_cogvideox.randn_tensor", lambda *_, **__: z
    )
    frames = backbone.stock.videos(
        use_student(backbone, None, whole=True), ["a red circle"], steps=3, cfg=2.0
    )[0]
    cond, null = (backbone.encode_prompts([prompt]) for prompt in ("a red circle", ""))
    latents = backbone.stock.latents(
        use_student(backbone, None), z, cond, steps=3, cfg=2.0, null=null
    )
    expected = (backbone.decode(latents)[0].permute(1, 2, 3, 0) + 1) * 127.5
    found = torch.stack(
        [torch.tensor(frame.getdata(), dtype=torch.float32).view(32, 32, 3) for frame in frames]
    )
    assert len(frames) == 9 and (found - expected).abs().max() < 1.5
    assert end_to_end(backbone, None, ["a red circle"], steps=2, cfg=1.0, repeats=1).seconds > 0
