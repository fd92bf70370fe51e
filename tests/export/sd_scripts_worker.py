"""Run kohya-ss/sd-scripts' own loader on our kohya files, in its Python.

    PYTHONPATH=CHECKOUT python sd_scripts_worker.py FOLDER

FOLDER contains sd15.safetensors and sdxl.safetensors. FOLDER/answer.json lists which keys were not
loaded, and the factor at which the LoRA is added. The UNets are made on the meta device.
"""

import json
import sys
from pathlib import Path

import torch
from library.original_unet import UNet2DConditionModel
from library.sdxl_original_unet import SdxlUNet2DConditionModel
from networks.lora import create_network_from_weights

FOLDER = Path(sys.argv[1])

answer = {}
for name, make in (
    ("sd15", lambda: UNet2DConditionModel(64, 8, 768)),
    ("sdxl", SdxlUNet2DConditionModel),
):
    with torch.device("meta"):
        unet = make()
    network, weights = create_network_from_weights(
        1.0, str(FOLDER / f"{name}.safetensors"), None, [], unet, for_inference=True
    )
    network.apply_to([], unet, False, True)
    info = network.load_state_dict(weights, False)
    layers = network.unet_loras
    answer[name] = {
        "layers": len(layers),
        "left": [*info.unexpected_keys, *info.missing_keys],
        "scales": sorted({float(layer.scale) for layer in layers}),
        "wrong": [
            layer.lora_name
            for layer in layers
            if list(layer.org_module_ref[0].weight.shape)
            != [len(layer.lora_up.weight), layer.lora_down.weight.shape[1]]
        ],
    }
(FOLDER / "answer.json").write_text(json.dumps(answer))
