"""One process exports a run that was sharded over ranks, without a launcher."""

import json

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file

from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.config import load_config
from tdmvid.export.sources import export_run
from tdmvid.train import trainer


def gathered_run(config, path):
    """Train, and instead of samples and export write the gathered final state of the ranks."""

    def finish(run):
        weights = run.engines["student"].weights(averaged=True)
        if run.world.primary:
            save_file(weights, path)

    trainer.finalize, trainer.write_samples = finish, lambda run, step: None
    trainer.train(load_config(config))


@pytest.mark.slow
def test_one_process_exports_what_the_ranks_of_a_sharded_run_hold_together(
    tiny_cogvideox, tmp_path
):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "out": str(tmp_path / "run"),
                "model": {"path": str(tiny_cogvideox("sincos"))},
                "video": {"frames": 9, "height": 32, "width": 32},
                "prompts": {
                    "path": str(tmp_path / "prompts.txt"),
                    "cache": str(tmp_path / "cache"),
                },
                "steps": 2,
                "ema": 0.5,
                "lora": {"rank": 2, "alpha": 4},
                "student": {"lr": 1e-2},
                "log": {"sample_every": 0, "sample_prompts": ["a red circle"], "teacher_steps": 2},
                "parallel": {"zero_stage": 3},
            }
        )
    )
    run_ranks(
        2,
        gathered_run,
        str(tmp_path / "run.json"),
        str(tmp_path / "together.safetensors"),
        seconds=180,
    )
    facts = export_run(tmp_path / "export", tmp_path / "run")
    assert (
        json.loads(
            (
                tmp_path / "run" / "checkpoints" / "step_000002" / "student" / "engine.json"
            ).read_text()
        )["ranks"]
        == 2
        and facts["error"] < 1e-4
    )
    together, exported = (
        load_file(tmp_path / "together.safetensors"),
        load_file(tmp_path / "export" / LORA_FILE),
    )
    assert len(together) == len(exported) > 10 and any(
        tensor.any() for name, tensor in together.items() if "lora_B" in name
    )
    assert all(
        torch.equal(exported[f"transformer.{name.replace('.default', '')}"], tensor)
        for name, tensor in together.items()
    )
