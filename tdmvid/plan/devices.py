"""Published peak rates of the devices that a plan can be priced on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config.rules import short


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, as described in its data sheet.

    Rates are peaks. Link rates count one direction.
    """

    name: str
    tflops: float
    """TFLOP/s of dense matrix products in bfloat16 or float16 with float32 accumulation."""
    tflops_float32: float
    """TFLOP/s in float32 without TF32, PyTorch's default."""
    bandwidth: float
    """Memory bandwidth in TB/s."""
    memory: float
    """Memory in GiB."""
    link: float
    """GB/s to the other devices of the node."""
    network: float
    """GB/s of each device to other nodes. Assumed: a typical node."""
    host: float
    """GB/s between the device and CPU memory."""
    sheet: str
    """Source of these figures."""


DEVICES = {
    "h100": Device(
        name="H100 SXM",
        tflops=989.4,
        tflops_float32=66.9,
        bandwidth=3.35,
        memory=79.6,
        link=450,
        network=50,
        host=64,
        sheet="NVIDIA H100 Tensor Core GPU data sheet, SXM; dense: half of the sparse rates",
    ),
    "h200": Device(
        name="H200 SXM",
        tflops=989.4,
        tflops_float32=66.9,
        bandwidth=4.8,
        memory=140.4,
        link=450,
        network=50,
        host=64,
        sheet="NVIDIA H200 Tensor Core GPU data sheet, SXM; dense: half of the sparse rates",
    ),
    "a100-80": Device(
        name="A100 80GB SXM",
        tflops=312.0,
        tflops_float32=19.5,
        bandwidth=2.039,
        memory=79.2,
        link=300,
        network=25,
        host=32,
        sheet="NVIDIA A100 Tensor Core GPU data sheet, 80GB SXM",
    ),
    "rtx4090": Device(
        name="RTX 4090",
        tflops=165.2,
        tflops_float32=82.6,
        bandwidth=1.008,
        memory=24.0,
        link=16,
        network=3,
        host=32,
        sheet="NVIDIA Ada GPU Architecture whitepaper, appendix A, dense, FP32",
    ),
    "rtx5090": Device(
        name="RTX 5090",
        tflops=209.5,
        tflops_float32=104.8,
        bandwidth=1.792,
        memory=31.8,
        link=32,
        network=3,
        host=64,
        sheet="NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A, dense, FP32",
    ),
}
"""Known devices by the name that `--device` takes.

Links: NVLink where the device has it (half of the total of both directions in the data sheet), else
half of a PCIe slot, because data passes through the CPU. Networks: one adapter per device of 400
Gb/s (Hopper) or 200 Gb/s (A100), as in a DGX; 25 Gb/s for workstation cards. Memory: as reported by
nvidia-smi.
"""
DEFAULT = "h100"


def choose_device(
    name: str | None = None, *, tflops: float = 0.0, bandwidth: float = 0.0
) -> Device:
    """Return a device by name, optionally with other peak rates.

    Args:
        name: Key of `DEVICES`; None takes `DEFAULT`.
        tflops: Peak rate in the run's dtype in TFLOP/s; 0 keeps the data sheet's.
        bandwidth: Memory bandwidth in TB/s; 0 keeps the data sheet's.

    Returns:
        The device. Its name and source state the rates that were replaced.

    Raises:
        ValueError: The name is unknown.
    """
    known = DEVICES.get(name or DEFAULT)
    if known is None:
        raise ValueError(f"--device={short(name)} is unknown: choose one of {', '.join(DEVICES)}")
    if not tflops and not bandwidth:
        return known
    given = [f"{tflops:g} TFLOP/s"] * bool(tflops) + [f"{bandwidth:g} TB/s"] * bool(bandwidth)
    return replace(
        known,
        name=f"{known.name} with {' and '.join(given)}",
        tflops=tflops or known.tflops,
        tflops_float32=tflops or known.tflops_float32,
        bandwidth=bandwidth or known.bandwidth,
        sheet=f"--tflops and --bandwidth as given, all other figures: {known.sheet}",
    )
