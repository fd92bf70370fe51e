"""Combine the two experts of a teacher, for high and for low noise, in one module.

The rest of the project sees one network. Each call goes to one expert, selected by the time of its
samples, so all samples of a call must lie on the same side of the boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Split:
    """The boundary time between two experts, and their component names."""

    time: float
    """In [0, 1]. The first expert handles calls at this time and above."""
    names: tuple[str, str] = ("transformer", "transformer_2")
    """Components of the stock pipeline: high noise, low noise."""

    def choose(self, timestep: Tensor, scale: float) -> str:
        """Return the name of the expert for a call. Synchronises with the device.

        Args:
            timestep: [B], in the network's units.
            scale: The timestep of t = 1.
        """
        above = timestep >= self.time * scale
        every, some = torch.stack([above.all(), above.any()]).tolist()
        assert every == some, f"the samples of a call lie on both sides of t = {self.time}"
        return self.names[0 if every else 1]


class HostMemory:
    """Keeps the frozen weights of both experts in host memory, and one expert's also on the device.

    The weights do not change, so an expert leaves the device without a copy back. Deep copies share
    this object.

    Args:
        experts: Both experts, in host memory.
        device: Where calls are computed.
    """

    def __init__(self, experts: Experts, device: torch.device):

        self.device, self.here, self.moves = device, "", 0
        self.held = {
            name: [(p, _pinned(p.data)) for p in network.parameters()]
            for name, network in experts.networks.items()
        }
        for name, network in experts.networks.items():
            for buffer in network.buffers():
                buffer.data = buffer.data.to(device)
            network.register_forward_pre_hook(Bring(self, name))
        self.bring(experts.split.names[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> HostMemory:
        return self

    def bring(self, name: str) -> None:
        """Move an expert's weights to the device and drop the other expert's."""
        if name == self.here:
            return
        for parameter, host in (each for held in self.held.values() for each in held):
            parameter.data = host
        for parameter, host in self.held[name]:
            parameter.data = host.to(self.device, non_blocking=True, copy=True)
        self.here, self.moves = name, self.moves + 1


@dataclass(frozen=True)
class Bring:
    """A forward pre-hook that moves an expert to the device."""

    host: HostMemory
    name: str

    def __call__(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        self.host.bring(self.name)


def _pinned(x: Tensor) -> Tensor:
    """Return the tensor in host memory, pinned if there is a GPU."""
    return x.cpu().pin_memory() if torch.cuda.is_available() else x.cpu()


class Experts(nn.Module):
    """Both experts as one module. A call goes to the expert selected by its `timestep`.

    Args:
        networks: The experts by component name, in the order of `split.names`.
        split: The boundary.
        scale: The timestep of t = 1.
    """

    def __init__(self, networks: Mapping[str, nn.Module], split: Split, scale: float = 1000.0):
        super().__init__()
        assert tuple(networks) == split.names
        self.split, self.scale = split, scale
        self.host: HostMemory | None = None
        for name, network in networks.items():
            self.add_module(name, network)

    def keep_idle_in_host_memory(self, device: torch.device) -> None:
        """Hold only the called expert on `device`. Both must be in host memory at this point."""
        self.host = HostMemory(self, device)

    def place_trained(self) -> None:
        """Move trainable parameters of both experts to the device, where they stay."""
        self.place(name for name, p in self.named_parameters() if p.requires_grad)

    def place(self, names: Iterable[str]) -> None:
        """Move parameters to the device, where they stay, if the idle expert is in host memory.

        Args:
            names: Names of parameters that were added after loading.
        """
        if self.host is None:
            return
        for name in names:
            parameter = self.get_parameter(name)
            parameter.data = parameter.data.to(self.host.device)

    @property
    def networks(self) -> dict[str, Any]:
        """The experts by component name."""
        return {name: self.get_submodule(name) for name in self.split.names}

    @property
    def config(self) -> Any:
        """The first expert's config, which describes the inputs of both."""
        return self.networks[self.split.names[0]].config

    def choose(self, timestep: Tensor) -> str:
        """Return the name of the expert for a call with `timestep` [B]."""
        return self.split.choose(timestep, self.scale)

    def forward(self, *, timestep: Tensor, **inputs: Any) -> Any:
        """Call the expert selected by `timestep` [B]."""
        return self.networks[self.choose(timestep)](timestep=timestep, **inputs)

    def enable_gradient_checkpointing(self, *how: Any) -> None:
        """Enable gradient checkpointing in both experts."""
        for network in self.networks.values():
            network.enable_gradient_checkpointing(*how)


def experts_of(network: Any) -> list[Any]:
    """Return both experts of an `Experts` module, or a list with the network itself."""
    return list(network.networks.values()) if isinstance(network, Experts) else [network]


def split_names(tensors: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Group the tensors of a pair by expert, with names as in the expert's own network.

    Args:
        tensors: Tensors named `<expert>.<name>`.
        names: The experts.

    Returns:
        Expert -> name -> tensor.
    """
    return {
        name: {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        for name in names
    }
