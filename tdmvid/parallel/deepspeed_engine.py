"""Training engine of one role over many processes: the interface of `TorchEngine` with ZeRO.

ZeRO stage 0 shards nothing, 1 shards the optimiser state, 2 also the gradients, 3 also the weights.
Two engines may share frozen Parameter objects (one base for student and fake): the first engine
shards them, the second finds them sharded. Every method is collective: all ranks must make the same
calls in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..config import OptimConfig
from .arithmetic import autocast, casts_weights
from .collectives import all_agree
from .deepspeed_config import common_config, deepspeed_config
from .engine import REMEDY, Files, StepResult, check_shapes, naming, shapes_of
from .optim import LossScale, build_optimizer
from .zero_parts import (
    assign_own_part,
    full_shape,
    gather_everywhere,
    gather_on_rank0,
    own_part,
)

TAG, UNIVERSAL = "zero", "universal"
ALIKE = {0: "whole", 1: "split", 2: "split", 3: "sharded"}
"""Layout of the optimiser state in a checkpoint, by ZeRO stage."""


def has_graph(inputs: Any) -> bool:
    """Return whether a gradient in any tensor of a call's arguments is needed.

    Args:
        inputs: Tensors, also in lists and dictionaries.
    """
    return any(isinstance(x, Tensor) and x.requires_grad for x in pytree.tree_leaves(inputs))


def _trained_together(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters, after copying the values of rank 0 to all ranks."""
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert trainable, "a role without trainable parameters"
    for name, parameter in trainable.items():
        assert parameter.dtype == torch.float32, f"{name} is trained but not float32"
        # DeepSpeed skips this if the base is already sharded.
        dist.broadcast(parameter.data, 0)
    return trainable


def _initialize(
    module: nn.Module,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> Any:
    # import after launch.start, which sets the accelerator that deepspeed reads at import
    import deepspeed

    return deepspeed.initialize(
        model=module, model_parameters=parameters, optimizer=optimizer, config=settings
    )[0]


class DeepSpeedEngine:
    """Training engine of a role over all ranks.

    The gradient is the mean over ranks and micro-batches. Trainable parameters must be float32, and
    start with the values of rank 0 on all ranks.

    Args:
        module: The network; parameters with `requires_grad` are trained.
        config: Optimiser settings.
        total_steps: Number of updates, for the learning rate schedule.
        micro_batch: Samples per micro-batch on one rank.
        accumulation: Micro-batches per update.
        ema: Decay of a moving average of the trainable parameters; 0 keeps none.
        zero_stage: ZeRO stage, 0 to 3.
        dtype: Data type of the frozen weights and of the network's computation.
        persistence_threshold: With ZeRO-3, parameters with fewer values stay whole on every rank.
        offload: Keep the optimiser state (`optimizer`), or also the sharded weights (`all`), in
            host memory.

    Raises:
        ValueError: If the ZeRO stage is not supported.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimConfig,
        *,
        total_steps: int,
        micro_batch: int,
        accumulation: int = 1,
        ema: float = 0.0,
        zero_stage: int = 3,
        dtype: torch.dtype = torch.float32,
        persistence_threshold: int = 100_000,
        offload: Literal["none", "optimizer", "all"] = "none",
    ):
        if zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"parallel.zero_stage={zero_stage}: choose 0, 1, 2 or 3")
        self.module, self.config = module, config
        self.total_steps, self.accumulation = total_steps, accumulation
        self.decay, self.stage = ema, zero_stage
        self.trainable = _trained_together(module)
        parameters = list(self.trainable.values())
        settings = deepspeed_config(
            config,
            zero_stage=zero_stage,
            micro_batch=micro_batch,
            accumulation=accumulation,
            cast_to=dtype if casts_weights(module, dtype) else None,
            trainable=sum(p.numel() for p in parameters),
            persistence_threshold=persistence_threshold,
            offload=offload,
        )
        self.autocast = autocast(module, dtype)
        if dtype == torch.float16 and casts_weights(module, dtype):
            _autocast_inside(module, self.autocast)
        _share_fetches(module)
        optimizer = build_optimizer(config, parameters, fused=True)
        self.engine = _initialize(module, parameters, optimizer, settings)
        self.average = (
            {name: own_part(p).clone() for name, p in self.trainable.items()} if ema else {}
        )
        self.updates = self._backwards = 0
        self._set_scale(LossScale.of(dtype))

    def _set_scale(self, scale: LossScale) -> None:
        self.scale = scale
        if self.stage and scale.patience:  # also if the scale has fallen to 1
            self.engine.optimizer.override_loss_scale(scale.value)

    def __call__(self, *args, **kwargs):
        if torch.is_grad_enabled() and has_graph((args, kwargs)):
            # For gradients in the inputs, bypass the engine: it would treat the call as a training
            # step. This needs whole weights.
            assert self.stage < 3, "ZeRO-3 does not support gradients in the inputs of a call"
            with self.autocast:
                return self.module(*args, **kwargs)
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the mean loss over micro-batches and ranks.

        Args:
            loss: Loss of one micro-batch, a scalar.
        """
        self._backwards += 1
        assert self._backwards <= self.accumulation, (
            "more backward passes than `accumulation` before a step"
        )
        self.engine.set_gradient_accumulation_boundary(self._backwards == self.accumulation)
        self.engine.backward(loss if self.stage else loss * self.scale.value)

    def step(self, *, skip: bool | Tensor = False) -> StepResult:
        """Clip the gradient, update the weights and the moving average.

        Args:
            skip: Whether to only clear the gradient, a bool or a scalar tensor. True on any rank,
                or a gradient that is not finite, has this effect on all ranks.

        Returns:
            The result of the step. The gradient norm is infinite if nothing was applied.
        """
        assert self._backwards == self.accumulation, (
            f"{self._backwards} backward passes, not {self.accumulation}, before a step"
        )
        self._backwards = 0
        rate = self.config.rate(self.updates, self.total_steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        agreed = all_agree(not bool(skip))
        norm, applied = (
            self._step_unsharded(agreed) if self.stage == 0 else self._step_sharded(agreed)
        )
        if applied:
            self.updates += 1
            self._update_average()
        rescaled = agreed and self.scale.update(applied)
        self._set_scale(self.scale)
        return StepResult(applied, norm, rate, rescaled)

    def _step_sharded(self, agreed: bool) -> tuple[float, bool]:
        if not agreed:
            self._spoil_gradient()
        self.engine.step()
        return float(self.engine.get_global_grad_norm()), self.engine.was_step_applied()

    def _step_unsharded(self, agreed: bool) -> tuple[float, bool]:
        """Check the gradient and step; without sharding, DeepSpeed steps with any gradient."""
        parameters = list(self.trainable.values())
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_div_(gradients, self.scale.value)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        applied = agreed and norm < float("inf")
        if applied:
            self.engine.step()
        else:
            self.engine.optimizer.zero_grad(set_to_none=True)
        return norm if applied else float("inf"), applied

    def _spoil_gradient(self) -> None:
        """Set the gradient to NaN, so that DeepSpeed's check fails and clears the gradient."""
        optimizer, nothing = self.engine.optimizer, float("nan")
        for gradients in optimizer.averaged_gradients.values():
            for gradient in gradients or ():
                gradient.fill_(nothing)
        # With offloaded gradients, DeepSpeed only checks these norms.
        offloaded = getattr(optimizer, "norm_for_param_grads", {})
        for key, norm in offloaded.items():
            offloaded[key] = norm * nothing

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average:
            own = [own_part(p) for p in self.trainable.values()]
            torch._foreach_lerp_(list(self.average.values()), own, 1 - self.decay)

    def weights(self, *, averaged: bool, everywhere: bool = True) -> dict[str, Tensor]:
        """Gather the whole trainable tensors on the CPU. Collective.

        Args:
            averaged: Whether to return the moving average, if there is one.
            everywhere: Whether to return the tensors on every rank instead of only on rank 0.

        Returns:
            Parameter name -> tensor [*full_shape]; empty on ranks above 0 if not `everywhere`.
        """
        put_together = gather_everywhere if everywhere else gather_on_rank0
        whole = {
            name: put_together(part, self.trainable[name])
            for name, part in self._parts(averaged).items()
        }
        return {name: tensor for name, tensor in whole.items() if tensor is not None}

    def _parts(self, averaged: bool) -> dict[str, Tensor]:
        """Return the part of every trainable tensor that this rank stores."""
        return (
            self.average
            if averaged and self.average
            else {name: own_part(p) for name, p in self.trainable.items()}
        )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights in the module inside the block, if there are any.

        The optimiser keeps its own weights.
        """
        if not self.average:
            yield
            return
        own = {name: part.to("cpu", copy=True) for name, part in self._parts(False).items()}
        try:
            self._assign(self.average)
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, parts: dict[str, Tensor]) -> None:
        """Assign parts to the parameters one by one, so no rank holds a whole sharded network."""
        import deepspeed

        for name, parameter in self.trainable.items():
            sharded = hasattr(parameter, "ds_tensor")
            whole = gather_on_rank0(parts[name], parameter) if sharded else parts[name]
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded):
                if whole is not None:
                    parameter.copy_(whole)

    def snapshot(self) -> Files:
        """Copy the state of this rank to host memory. Collective.

        Returns:
            The checkpoint files of this rank: DeepSpeed's shards, and on rank 0 also the weights
            and the moving average.
        """
        from .deepspeed_checkpoint import in_memory

        files = in_memory(self.engine, TAG)
        weights = self.weights(averaged=False, everywhere=False)
        average = self.weights(averaged=True, everywhere=False) if self.average else {}
        if dist.get_rank() == 0:
            files["weights.safetensors"] = save(weights)
            if self.average:
                files["average.safetensors"] = save(average)
            state = {
                "updates": self.updates,
                "ranks": dist.get_world_size(),
                "stage": self.stage,
                "scale": asdict(self.scale),
            }
            files["engine.json"] = json.dumps(state).encode()
        return files

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Restore the state from the `snapshot` files of all ranks into a new engine. Collective.

        On the same number of ranks, the restored state is bit-identical. For another number of
        ranks, the checkpoint is converted once, and the result is stored next to it.

        Args:
            folder: Checkpoint folder of the role.

        Raises:
            ValueError: If a file cannot be loaded, belongs to another model, or holds more than
                data.
        """
        with naming(folder / "engine.json") as path:
            state = json.loads(path.read_text())
            updates, ranks, scale = state["updates"], state["ranks"], LossScale(**state["scale"])
            stage = state.get("stage", self.stage)
        if ALIKE[stage] != ALIKE[self.stage]:
            raise ValueError(
                f"{folder} was written with parallel.zero_stage={stage}, whose optimiser state"
                f" zero_stage={self.stage} cannot read: use parallel.zero_stage="
                + " or ".join(str(each) for each, kind in ALIKE.items() if kind == ALIKE[stage])
                + ", or start a new run"
            )
        if self.average and not (folder / "average.safetensors").exists():
            raise ValueError(
                f"{folder} has no average of the weights, because it was written with ema=0: resume"
                " with ema=0"
            )
        self._check_shapes(folder / "weights.safetensors")
        from .deepspeed_checkpoint import load_shards, make_universal

        sharded = self.stage > 0  # without ZeRO each rank has the whole state
        universal = sharded and ranks != dist.get_world_size()
        if universal:
            make_universal(folder / TAG, folder / UNIVERSAL)
        load_shards(self.engine, folder, UNIVERSAL if universal else TAG, universal=universal)
        if self.average:
            with naming(folder / "average.safetensors") as path:
                average = load_file(path)
            for name, tensor in average.items():
                assign_own_part(self.average[name], tensor, self.trainable[name])
        self.updates = updates
        self._set_scale(scale)

    def _check_shapes(self, path: Path) -> None:
        own = {name: full_shape(p) for name, p in self.trainable.items()}
        with naming(path):
            saved = load_file(path)
        check_shapes(shapes_of(saved), own, f"{path}:", REMEDY)


def _autocast_inside(module: nn.Module, autocast: torch.autocast) -> None:
    """Apply autocast inside the module: DeepSpeed's own for float16 clips scaled gradients."""
    module.forward = autocast(module.forward)


def _share_fetches(module: nn.Module) -> None:
    """Share the registry of weights that are being fetched between engines of one base (ZeRO-3).

    DeepSpeed has one registry per module tree. Without sharing, another engine could neither wait
    for such a weight nor fetch it again.
    """
    from deepspeed.runtime.zero.partitioned_param_coordinator import InflightParamRegistry

    first: Any = next(module.parameters())
    if not hasattr(first, "in_flight"):
        first.in_flight = InflightParamRegistry()
    module.ds_inflight_param_registry = first.in_flight


def shard_frozen(
    module: nn.Module, *, micro_batch: int, persistence_threshold: int = 100_000
) -> Any:
    """Shard the weights of a frozen network over the ranks (ZeRO-3). Collective.

    Args:
        module: The network.
        micro_batch: Samples per micro-batch on one rank.
        persistence_threshold: Parameters with fewer values stay whole on every rank.

    Returns:
        The engine. Call it like the module, without gradients.
    """
    import deepspeed

    zero = {"stage": 3, "stage3_param_persistence_threshold": persistence_threshold}
    return deepspeed.initialize(model=module, config=common_config(micro_batch, zero))[0]
