"""Cache of text embeddings on disk, so that training never loads the text encoder.

A shard is a safetensors file in root/<fingerprint>/. Its tensors are named
<sha256 of the prompt>.<name of the tensor in Cond> and have no batch dimension, e.g. prompt_embeds
[T, D] with T tokens and D channels. The metadata contain a checksum of every tensor, which is
compared when the tensor is first read. Shards are written atomically and never changed, so any
number of processes can read and write the same cache.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..diffusion.denoiser import Cond
from .files import PART, atomic_path, check_writable, short
from .saved_work import note_saved_work

PROMPTS_PER_SHARD = 512
PATIENCE = 120.0
"""Seconds to wait for a shard that another machine has written.

A shared file system can show the state of a folder from a minute ago.
"""


@dataclass(frozen=True)
class _Entry:
    """Location of the tensors of one prompt."""

    path: Path
    shard: safe_open
    checksums: dict[str, str]
    """Name of a tensor in Cond -> its checksum."""


class EmbeddingCache:
    """Cache of the embeddings of one text encoder, with the prompt text as key.

    Args:
        root: Folder of the caches of all encoders.
        fingerprint: Identifies the encoder and everything that affects its output (weights, token
            limit, dtype). May contain letters, digits, "_", "-" and ".".

    Raises:
        ValueError: If the fingerprint contains other characters.
    """

    def __init__(self, root: Path, fingerprint: str):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", fingerprint):
            raise ValueError(
                f"fingerprint={fingerprint!r} must be a folder name: use letters, digits, '_', '-'"
                " and '.'"
            )
        self.folder, self.fingerprint = Path(root) / fingerprint, fingerprint
        self._shards: dict[str, safe_open] = {}
        self._entries: dict[str, _Entry] = {}
        self._compared: set[str] = set()
        """Keys of prompts with checksums that were already compared."""

    def missing(self, prompts: Iterable[str], *, patience: float = 0.0) -> list[str]:
        """List the prompts that are not in the cache.

        Args:
            prompts: The prompts.
            patience: Seconds to wait for missing prompts to appear.

        Returns:
            The missing prompts in order, without duplicates.
        """
        missing, end = list(dict.fromkeys(prompts)), time.monotonic() + patience
        while True:
            self._scan()
            missing = [prompt for prompt in missing if _key(prompt) not in self._entries]
            if not missing or time.monotonic() >= end:
                return missing
            time.sleep(min(1.0, patience))

    def add(self, prompts: list[str], cond: Cond) -> None:
        """Write a new shard. Tensors keep their dtype.

        Args:
            prompts: B prompts.
            cond: Their embeddings, tensors [B, ...].

        Raises:
            ValueError: If an embedding is not finite.
        """
        assert len(prompts) == cond.batch > 0, f"{len(prompts)} prompts, batch of {cond.batch}"
        # Make contiguous first: safetensors refuses overlapping rows, e.g. of an expanded batch.
        batches = {name: tensor.detach().cpu().contiguous() for name, tensor in cond.items()}
        tensors = {
            f"{_key(p)}.{name}": batch[i]
            for name, batch in batches.items()
            for i, p in enumerate(prompts)
        }
        for i, prompt in enumerate(prompts):
            if not all(batch[i].isfinite().all() for batch in batches.values()):
                raise ValueError(
                    f"the embedding of {short(prompt)} is not finite: encode in float32 or bfloat16"
                    " (--dtype, or model.dtype of a config)"
                )
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        with atomic_path(self.folder / f"{uuid.uuid4().hex}.safetensors") as part:
            save_file(tensors, part, metadata=checksums | {"fingerprint": self.fingerprint})
        note_saved_work()

    def get(self, prompts: list[str]) -> Cond:
        """Read embeddings.

        Args:
            prompts: B prompts.

        Returns:
            The embeddings, tensors [B, ...] on the CPU.

        Raises:
            ValueError: If an embedding is missing or damaged.
        """
        known = all(_key(prompt) in self._entries for prompt in prompts)
        if not known and (missing := self.missing(prompts)):
            raise ValueError(
                f"{self.folder}: no embedding of {short(missing[0])} ({len(missing)} missing): "
                "run tdmvid embed --config ..."
            )
        rows = [self._row(prompt) for prompt in prompts]
        layouts = [{name: list(tensor.shape) for name, tensor in row.items()} for row in rows]
        for prompt, layout in zip(prompts, layouts):
            if layout != layouts[0]:
                raise ValueError(
                    f"{self.folder}: {short(prompt)} has {layout}, {short(prompts[0])} has"
                    f" {layouts[0]}: the shards are from different encoders; delete the folder and"
                    " start again"
                )
        return Cond(
            {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
        )

    def _row(self, prompt: str) -> dict[str, torch.Tensor]:
        key = _key(prompt)
        entry = self._entries[key]
        row = {name: entry.shard.get_tensor(f"{key}.{name}") for name in entry.checksums}
        if key not in self._compared:
            if any(_checksum(row[name]) != entry.checksums[name] for name in row):
                raise ValueError(
                    f"{entry.path} is damaged (checksum of the embedding of {short(prompt)}):"
                    " delete the file and start again, or use --resume auto"
                )
            self._compared.add(key)
        return row

    def _scan(self) -> None:
        """Open the shards that were written since the last scan, by any process."""
        broken = []
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name in self._shards or PART in path.name:
                continue
            try:
                shard, entries = _open(path, self.fingerprint)
            except ValueError as error:
                broken.append(error)
                continue
            self._shards[path.name] = shard
            self._entries.update(entries)
        if broken:
            more = f" (and {len(broken) - 1} more such shards)" if len(broken) > 1 else ""
            raise ValueError(f"{broken[0]}{more}: delete it and start again")


def embed_prompts(
    cache: EmbeddingCache,
    prompts: Iterable[str],
    encode: Callable[[list[str]], Cond],
    *,
    batch: int = 16,
    per_shard: int = 0,
    what: str = "prompt",
    progress: bool = True,
    each: Callable[[], object] = lambda: None,
) -> int:
    """Encode the prompts that are missing in a cache.

    Each shard is written before the next is encoded, so a killed process loses at most one shard.

    Args:
        cache: The cache.
        prompts: The prompts, or keys of other items.
        encode: Encodes a batch: B prompts -> tensors [B, ...].
        batch: Prompts per call of `encode`.
        per_shard: Prompts per shard; 0 uses `PROMPTS_PER_SHARD`.
        what: Name of the items in the progress bar.
        progress: Whether to show a progress bar.
        each: Called after each shard.

    Returns:
        The number of prompts that were missing.

    Raises:
        ValueError: If prompts are missing and the cache cannot be written.
    """
    missing = cache.missing(prompts)
    if missing:
        check_writable(cache.folder, "prompts.cache (embeddings of an evaluation, --cache)")
    per_shard = per_shard or PROMPTS_PER_SHARD
    with tqdm(
        total=len(missing),
        desc=f"embedding {what}s",
        unit=what,
        disable=not (progress and missing),
    ) as bar:
        for first in range(0, len(missing), per_shard):
            shard = missing[first : first + per_shard]
            conds = []
            for start in range(0, len(shard), batch):
                some = shard[start : start + batch]
                with torch.no_grad():
                    conds.append(encode(some).to("cpu"))
                bar.update(len(some))
            cache.add(shard, Cond.cat(conds))
            each()
    return len(missing)


def _key(prompt: str) -> str:
    # A key may contain the path of the working folder, whose name need not be UTF-8.
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()


def _checksum(tensor: torch.Tensor) -> str:
    """Return a hash of dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open(path: Path, fingerprint: str) -> tuple[safe_open, dict[str, _Entry]]:
    """Open a shard memory-mapped, and return it with its entries; ValueError if it is invalid."""
    try:
        shard = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: broken shard ({error})") from error
    metadata = shard.metadata() or {}
    found = metadata.pop("fingerprint", None)
    if found != fingerprint:
        raise ValueError(f"{path}: shard of encoder {found!r}, not {fingerprint!r}")
    if set(metadata) != set(shard.keys()):
        raise ValueError(f"{path}: broken shard (its checksums are not those of its tensors)")
    entries: dict[str, _Entry] = {}
    for tensor, checksum in sorted(metadata.items()):
        key, _, name = tensor.partition(".")
        entries.setdefault(key, _Entry(path, shard, {})).checksums[name] = checksum
    return shard, entries
