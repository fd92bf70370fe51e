"""A student of a teacher with a user's LoRAs, and the code of its card."""

import torch
from contract_cases import noise

from tdmvid.adapters.lora import attach, shared_copy
from tdmvid.adapters.teacher import adapters_of
from tdmvid.config import LoraSettings
from tdmvid.diffusion.grid import shifted
from tdmvid.export.student import Adapter, Reference, Student, sample_reference


def student_of(teacher, case, grid):
    """Return a student on the teacher's base, with LoRAs that have an effect.

    Args:
        teacher: A backbone with the user's LoRAs on its network.
        case: The tiny pipeline.
        grid: Number of steps and flow shift.
    """
    settings, grid = LoraSettings(rank=2, alpha=6), shifted(*grid, teacher.process)
    module = attach(shared_copy(teacher.network), settings, teacher.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in weights.items():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    reference = Reference(noise(teacher), case.cond(teacher))
    latents = sample_reference(teacher, module, reference, grid)
    weights = {name: p.detach().clone() for name, p in weights.items()}
    adapter = Adapter(module, settings)
    return Student(
        teacher, grid, weights, reference, latents, adapter, adapters=adapters_of(teacher)
    )
