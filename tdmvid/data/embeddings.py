"""Text embeddings on disk, so that training never loads the text encoder.

A shard is a safetensors file under root/<fingerprint>/; its tensors are named
<sha256 of the prompt>.<name of the tensor in Cond>, each without the batch dimension, for
instance prompt_embeds [T, D] of T tokens and D channels. Its metadata hold a checksum of every
tensor, which is compared when the tensor is first read. Shards are written whole and never changed,
so that any number of processes may read and write one cache.
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
from .files import PART, atomic_path, short

PROMPTS_PER_SHARD = 512
PATIENCE = 120.0
"""Seconds until a shard that another machine has written must be visible: a shared file system may
show a folder as it was a minute ago.
"""


@dataclass(frozen=True)
class _Entry:
    """Where one prompt's tensors are."""

    path: Path
    shard: safe_open
    checksums: dict[str, str]
    """Name of each tensor in Cond -> its checksum."""


class EmbeddingCache:
    """The embeddings of one text encoder; prompts are found by their text.

    fingerprint: names the encoder and all that shapes its output (weights, token limit,
    dtype), in letters, digits, "_", "-" and ".".
    """

    def __init__(self, root: Path, fingerprint: str):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", fingerprint):
            raise ValueError(
                f"fingerprint={fingerprint!r} names a folder: use letters, digits, '_', '-' and '.'"
            )
        self.folder, self.fingerprint = Path(root) / fingerprint, fingerprint
        self._shards: dict[str, safe_open] = {}
        self._entries: dict[str, _Entry] = {}
        self._compared: set[str] = set()
        """Keys of prompts whose checksums were compared."""

    def missing(self, prompts: Iterable[str], *, patience: float = 0.0) -> list[str]:
        """The prompts that no shard has, each once, in order; asked again for `patience` seconds
        before it says that there are any.
        """
        missing, end = list(dict.fromkeys(prompts)), time.monotonic() + patience
        while True:
            self._scan()
            missing = [prompt for prompt in missing if _key(prompt) not in self._entries]
            if not missing or time.monotonic() >= end:
                return missing
            time.sleep(min(1.0, patience))

    def add(self, prompts: list[str], cond: Cond) -> None:
        """Writes one new shard with the embeddings of `prompts`, in the dtype they have; raises
        ValueError if one is not finite.
        """
        assert len(prompts) == cond.batch > 0, f"{len(prompts)} prompts, batch of {cond.batch}"
        # Contiguous first: safetensors refuses rows that overlap, as those of an expanded batch do.
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

    def get(self, prompts: list[str]) -> Cond:
        """The embeddings of `prompts`, one row each, on the CPU; raises ValueError if one is
        missing or damaged.
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
                    f" {layouts[0]}: the shards are of different encoders; delete the folder and"
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
                    f"{entry.path}: damaged, the embedding of {short(prompt)} is not what was"
                    " written: delete the file and start again, or --resume auto"
                )
            self._compared.add(key)
        return row

    def _scan(self) -> None:
        """Opens the shards that came since the last look, whoever wrote them."""
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
    """Encodes the prompts that `cache` lacks, `batch` at a time; returns how many there were.
    `each` is called after each shard. per_shard: of how many; 0 is usual for prompts. what: what is
    encoded, for the progress bar.

    Each shard is on disk before the next is begun: a killed run loses the work of one.
    """
    missing = cache.missing(prompts)
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
    return hashlib.sha256(prompt.encode()).hexdigest()


def _checksum(tensor: torch.Tensor) -> str:
    """A hash of dtype, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open(path: Path, fingerprint: str) -> tuple[safe_open, dict[str, _Entry]]:
    """A shard, memory mapped, and its prompts by their keys; raises ValueError if it is not one."""
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
