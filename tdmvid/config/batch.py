"""Split the global batch over data-parallel ranks and micro-batches."""

from __future__ import annotations

from dataclasses import replace

from .data import BatchConfig
from .run import RunConfig


def share_batch(config: RunConfig, ranks: int) -> RunConfig:
    """Compute `batch.accumulation` from `batch.total`.

    Args:
        config: Settings of the run. Without a total they are returned unchanged.
        ranks: Number of data-parallel ranks.

    Returns:
        The settings with the number of micro-batches that each rank accumulates.

    Raises:
        ValueError: If the total is not a multiple of `batch.micro` times the ranks (the message
            gives the nearest values), or if it contradicts `batch.accumulation`.
    """
    batch = config.batch
    if not batch.total:
        return config
    each = batch.micro * ranks
    if batch.total % each:
        raise ValueError(
            f"batch.total={batch.total} is not a multiple of {each}, which is"
            f" batch.micro={batch.micro} x {_counted(ranks)}: set {_nearest(batch, ranks)}"
        )
    accumulation = batch.total // each
    if batch.accumulation not in (1, accumulation):
        raise ValueError(
            f"batch.accumulation={batch.accumulation} contradicts batch.total={batch.total}, which"
            f" needs {accumulation} micro-batches of {batch.micro} on {_counted(ranks)}: remove it,"
            " or set batch.total=0"
        )
    return replace(config, batch=replace(batch, accumulation=accumulation))


def global_batch(batch: BatchConfig, ranks: int) -> int:
    """Count the samples of an optimiser step over all ranks.

    Args:
        batch: Batch settings of the run.
        ranks: Number of data-parallel ranks.

    Returns:
        Micro-batch size x accumulation x ranks.
    """
    return batch.micro * batch.accumulation * ranks


def _nearest(batch: BatchConfig, ranks: int) -> str:
    """Return the nearest totals that fit, and micro-batch sizes that fit this total, as text."""
    each = batch.micro * ranks
    below = batch.total // each * each
    totals = [str(total) for total in (below, below + each) if total]
    text = f"batch.total={' or '.join(totals)}"
    if batch.total % ranks == 0:
        share = batch.total // ranks
        divisors = [micro for micro in range(1, min(share, 10**6) + 1) if share % micro == 0]
        smaller = [micro for micro in divisors if micro < batch.micro]
        larger = [micro for micro in divisors if micro > batch.micro]
        micros = [str(micro) for micro in (*smaller[-1:], *larger[:1])]
        text += f", or batch.micro={' or '.join(micros)}"
    return text


def _counted(ranks: int) -> str:
    return f"{ranks} data-parallel rank{'s' * (ranks > 1)}"
