"""The DeepSpeed configuration, derived from the settings of a run."""

from __future__ import annotations

from typing import Any

import torch

from ..config import OptimConfig


def deepspeed_config(
    optim: OptimConfig,
    *,
    zero_stage: int,
    micro_batch: int,
    accumulation: int,
    cast_to: torch.dtype | None,
    trainable: int,
    persistence_threshold: int,
    offload: str = "none",
) -> dict[str, Any]:
    """Build the DeepSpeed configuration of one role.

    Args:
        optim: Optimiser settings.
        zero_stage: ZeRO stage, 0 to 3.
        micro_batch: Samples per micro-batch on one rank.
        accumulation: Micro-batches per update.
        cast_to: Data type of autocast; None without autocast.
        trainable: Number of trainable values.
        persistence_threshold: With ZeRO-3, parameters with fewer values stay whole on every rank.
        offload: `none`, `optimizer` or `all`; see `ParallelConfig.offload`.

    Returns:
        The configuration.
    """
    # The full size of the bucket is allocated, so it is limited to what is needed.
    zero: dict[str, Any] = {
        "stage": zero_stage,
        "reduce_bucket_size": min(trainable, 500_000_000),
    }
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if offload != "none":
        zero["offload_optimizer"] = host
    if offload == "all":
        zero["offload_param"] = host
    if zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = persistence_threshold
    return common_config(micro_batch, zero, cast_to) | {
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optim.clip,
        "zero_force_ds_cpu_optimizer": False,
        # for torch's optimisers; DeepSpeed's own are compiled at first use
        "zero_allow_untested_optimizer": True,
    }


def common_config(
    micro_batch: int, zero: dict[str, Any], cast_to: torch.dtype | None = None
) -> dict[str, Any]:
    """Build the part of the configuration that trained and frozen networks share.

    Args:
        micro_batch: Samples per micro-batch on one rank.
        zero: The `zero_optimization` section.
        cast_to: Data type of autocast; None without autocast.

    Returns:
        The configuration.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "zero_optimization": zero,
        "steps_per_print": None,
        # otherwise the host waits for the device in every forward pass
        "timers": {"throughput": {"enabled": False}},
    }
    if cast_to == torch.bfloat16:
        # The engine disables autocast of the caller unless it has its own. The list of modules is
        # empty, because parameters of listed modules are communicated in lower precision.
        config["torch_autocast"] = {
            "enabled": True,
            "dtype": str(cast_to).removeprefix("torch."),
            "lower_precision_safe_modules": [],
        }
    return config
