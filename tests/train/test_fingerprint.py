"""A checkpoint is resumed only with the settings that its numbers depend on."""

import json

import pytest
from refusals import refused

from tdmvid.config import RunConfig, from_dict, to_dict
from tdmvid.train.checkpoint import Checkpoints

CLIP = {"function": "clip", "strength": 2.0}
OCR = {"function": "text", "process": "own"}
LORA = {"path": "a.safetensors", "scale": 0.5}


def settings(*rewards, adapters=()):
    model = {"path": "teacher", "adapters": list(adapters)}
    config = from_dict(RunConfig, {"rewards": list(rewards), "model": model})
    return {key: value for key, value in to_dict(config).items() if key in ("rewards", "model")}


def resume(folder, written, own):
    content = {"step": 3, "fingerprint": written, "files": {}}
    (folder / "checkpoint.json").write_text(json.dumps(content))
    return Checkpoints.load(folder, {}, own, to_dict(RunConfig()))


@pytest.mark.parametrize(
    "change", [{"on_failure": "mean"}, {"process": "own", "device": "cuda", "timeout": 9.0}]
)
def test_a_reward_that_fails_may_be_called_in_another_way(tmp_path, change):
    assert resume(tmp_path, settings(CLIP), settings(CLIP | change)) == 3


@pytest.mark.parametrize(
    "written, own, facts",
    [
        ((CLIP,), (CLIP | {"strength": 1.0},), ("rewards[0].strength=2.0", "1.0")),
        ((CLIP, OCR), (CLIP,), ("rewards[1].function='text'",)),
        ((CLIP,), (CLIP, OCR), ("rewards[1].function=", "'text'")),
        ((), (CLIP,), ("rewards[0].function=", "'clip'")),
        ((CLIP,), (), ("rewards[0].function='clip'",)),
    ],
)
def test_a_change_of_the_rewards_is_refused_by_its_place(tmp_path, written, own, facts):
    with refused(*facts):
        resume(tmp_path, settings(*written), settings(*own))


def test_all_settings_that_differ_are_named_at_once(tmp_path):
    written = settings(CLIP, OCR, adapters=[LORA])
    own = settings(CLIP | {"strength": 1.0}, OCR, adapters=[LORA | {"scale": 1.0}])
    with refused("model.adapters[0].scale=0.5", "rewards[0].strength", "the same values"):
        resume(tmp_path, written, own)


def test_the_scale_of_a_user_s_lora_is_named(tmp_path):
    with refused("model.adapters[0].scale=0.5", "1.0"):
        own = settings(adapters=[LORA | {"scale": 1.0}])
        resume(tmp_path, settings(adapters=[LORA]), own)
