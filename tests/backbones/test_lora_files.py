"""The bytes of a student's files are determined by the student alone."""

import json

from peft import LoraConfig

from tdmvid.backbones.pixart import PeftFolder


def test_a_peft_folder_lists_its_modules_in_order_in_every_process(tmp_path):
    names = [f"blocks.{number}.to_q" for number in range(20)]
    config = LoraConfig(target_modules=names[::-1])
    PeftFolder("PixArtAlphaPipeline", file="a.safetensors").save(tmp_path, {}, config)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(names)
    assert config.target_modules == set(names)
