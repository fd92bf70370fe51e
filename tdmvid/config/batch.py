"""How the ranks of a run share its global batch."""

from __future__ import annotations

from dataclasses import replace

from .data import BatchConfig
from .run import RunConfig


def share_batch(config: RunConfig, ranks: int) -> RunConfig:
    """Return the run with the accumulation that `batch.total` asks of each rank.

    Args:
        config: The run; one without a total comes back as it is.
        ranks: The number of data-parallel ranks.

    Raises:
        ValueError: If the total does not divide, with the nearest values that do; or if another
            accumulation is given beside it.
    """
    batch = config.batch
    if not batch.total:
        return config
    each = batch.micro * ranks
    if batch.total % each:
        raise ValueError(
            f"batch.total={batch.total} does not divide by {each}, which is"
            f" batch.micro={batch.micro} x {_counted(ranks)}: set {_nearest(batch, ranks)}"
        )
    accumulation = batch.total // each
    if batch.accumulation not in (1, accumulation):
        raise ValueError(
            f"batch.accumulation={batch.accumulation} contradicts batch.total={batch.total}, which"
            f" is {accumulation} micro-batches of {batch.micro} on {_counted(ranks)}: leave it out,"
            " or set batch.total=0"
        )
    return replace(config, batch=replace(batch, accumulation=accumulation))


def global_batch(batch: BatchConfig, ranks: int) -> int:
    """Return the samples of an optimiser step on `ranks` data-parallel ranks together."""
    return batch.micro * batch.accumulation * ranks


def _nearest(batch: BatchConfig, ranks: int) -> str:
    """Name the nearest totals that divide, and micro-batches with which this one does."""
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
