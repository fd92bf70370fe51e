"""Two networks of one teacher, each for its own times: the experts of high and of low noise.

To the method they are one network. A call goes to one expert, by the time of its samples, so all
samples of a call must lie on one side of the boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Split:
    """At which time one expert takes over from the other, and what the pipeline calls them."""

    time: float
    """In [0, 1]; calls at this time and above it are the first expert's."""
    names: tuple[str, str] = ("transformer", "transformer_2")
    """Components of the stock pipeline: of high noise, of low noise."""

    def choose(self, timestep: Tensor, scale: float) -> str:
        """Return the expert of a call.

        Args:
            timestep: [B], as the network counts it; the host waits for it.
            scale: the timestep of t = 1.
        """
        above = timestep >= self.time * scale
        every, some = torch.stack([above.all(), above.any()]).tolist()
        assert every == some, f"a call on both sides of the boundary {self.time}"
        return self.names[0 if every else 1]


class HostMemory:
    """The frozen weights of both experts in host memory, and those of one on the device, too.

    They do not change, so an expert leaves the device without a copy. Module trees over the same
    parameters share it.
    """

    def __init__(self, experts: Experts, device: torch.device):
        """Take the weights as they are now, in host memory, and bring the first expert's."""
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
        """Put an expert's weights on the device, in the place of the other's."""
        if name == self.here:
            return
        for parameter, host in (each for held in self.held.values() for each in held):
            parameter.data = host
        for parameter, host in self.held[name]:
            parameter.data = host.to(self.device, non_blocking=True, copy=True)
        self.here, self.moves = name, self.moves + 1


@dataclass(frozen=True)
class Bring:
    """A hook before an expert's call."""

    host: HostMemory
    name: str

    def __call__(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        self.host.bring(self.name)


def _pinned(x: Tensor) -> Tensor:
    """The tensor in host memory, where a GPU can read it while it computes."""
    return x.cpu().pin_memory() if torch.cuda.is_available() else x.cpu()


class Experts(nn.Module):
    """Both networks as one module, which calls that of its `timestep`."""

    def __init__(self, networks: Mapping[str, nn.Module], split: Split, scale: float = 1000.0):
        super().__init__()
        assert tuple(networks) == split.names
        self.split, self.scale = split, scale
        self.host: HostMemory | None = None
        for name, network in networks.items():
            self.add_module(name, network)

    def keep_idle_in_host_memory(self, device: torch.device) -> None:
        """Hold on the device only the expert that is called; both lie in host memory now."""
        self.host = HostMemory(self, device)

    def place_trained(self) -> None:
        """Put what is trained on the device, of which both experts' stays there."""
        if self.host:
            for parameter in self.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(self.host.device)

    @property
    def networks(self) -> dict[str, Any]:
        """The experts by the names of the pipeline's components."""
        return {name: self.get_submodule(name) for name in self.split.names}

    @property
    def config(self) -> Any:
        """What both networks' configs say of their inputs."""
        return self.networks[self.split.names[0]].config

    def choose(self, timestep: Tensor) -> str:
        """Return the name of the expert of a call, see `Split.choose`."""
        return self.split.choose(timestep, self.scale)

    def forward(self, *, timestep: Tensor, **inputs: Any) -> Any:
        return self.networks[self.choose(timestep)](timestep=timestep, **inputs)

    def enable_gradient_checkpointing(self, *how: Any) -> None:
        """Compute the blocks of both experts again for the backward pass."""
        for network in self.networks.values():
            network.enable_gradient_checkpointing(*how)


def experts_of(network: Any) -> list[Any]:
    """Return the networks of which a call goes through one: both experts, or the network itself."""
    return list(network.networks.values()) if isinstance(network, Experts) else [network]


def split_names(tensors: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return tensors of a pair by expert, under their names in its own network."""
    return {
        name: {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        for name in names
    }
