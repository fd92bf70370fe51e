"""Two trained runs that the export tests share."""

import pytest
from exported import SIZE

from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ModelConfig
from tdmvid.train.trainer import train


@pytest.fixture(scope="session")
def run(tiny_run, tmp_path_factory):
    """A LoRA run of 4 steps with averaged weights and checkpoints after 2 and 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmvid.train.trainer.finalize", lambda run: None)
        patch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
        return train(
            tiny_run(
                tmp_path_factory.mktemp("run") / "mine",
                "steps=4",
                "ema=0.5",
                "lora.alpha=6",
                "student.lr=0.05",
            )
        )


@pytest.fixture(scope="session")
def tuned(tiny_run, tmp_path_factory):
    """A run with full training for 2 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmvid.train.trainer.finalize", lambda run: None)
        patch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
        return train(
            tiny_run(
                tmp_path_factory.mktemp("run") / "full",
                "training=full",
                "steps=2",
                "student.lr=5e-3",
            )
        )


@pytest.fixture
def base(tiny_cogvideox):
    return load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), SIZE)
