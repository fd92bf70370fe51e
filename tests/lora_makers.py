"""LoRA files of a tiny CogVideoX as peft and diffusers write them, and what stock code reads."""

import copy

import torch
from diffusers import CogVideoXPipeline
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

RANK = 4


def peft_lora(network, **settings):
    """Return tensors and settings of a LoRA created by peft, with nonzero B."""
    torch.manual_seed(0)
    config = LoraConfig(
        **{"r": RANK, "lora_alpha": 8, "target_modules": ["to_q", "to_k"]} | settings
    )
    model = PeftModel(copy.deepcopy(network), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model, get_peft_model_state_dict(model)


def write_peft(network, folder, **settings):
    """Write a folder as peft does."""
    peft_lora(network, **settings)[0].save_pretrained(folder)
    return folder


def write_diffusers(network, folder, **settings):
    """Write a folder as diffusers does, with peft's settings in the header."""
    model, state = peft_lora(network, **settings)
    metadata = model.peft_config["default"].to_dict()
    CogVideoXPipeline.save_lora_weights(
        folder,
        transformer_lora_layers={
            key.removeprefix("base_model.model."): tensor for key, tensor in state.items()
        },
        transformer_lora_adapter_metadata={
            key: sorted(value) if isinstance(value, set) else value
            for key, value in metadata.items()
        },
    )
    return folder


def load_stock(network, folder):
    """Return the network with the LoRA, loaded by stock code."""
    network = copy.deepcopy(network)
    if (folder / "adapter_config.json").is_file():
        return PeftModel.from_pretrained(network, folder).base_model.model
    state, metadata = CogVideoXPipeline.lora_state_dict(folder, return_lora_metadata=True)
    CogVideoXPipeline.load_lora_into_transformer(state, transformer=network, metadata=metadata)
    return network


def changes(network):
    """Return what an adapted network adds to each weight, computed by peft."""
    return {
        name: layer.get_delta_weight(layer.active_adapters[0])
        for name, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
