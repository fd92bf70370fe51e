import random
import threading
import time

import pytest
import torch
from refusals import refused
from safetensors import safe_open
from safetensors.torch import save_file

from tdmvid.data import embeddings, files
from tdmvid.data.embeddings import EmbeddingCache, embed_prompts
from tdmvid.data.saved_work import MARKER
from tdmvid.diffusion.denoiser import Cond

PROMPTS = [f"a scene with {count} circles" for count in range(10)]


class Encoder:
    """Return random embeddings, equal for equal prompts, and count the calls."""

    def __init__(self, fail_after=None):
        self.seen, self.fail_after = [], fail_after

    def __call__(self, prompts):
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += prompts
        rows = [torch.Generator().manual_seed(sum(prompt.encode())) for prompt in prompts]
        tokens = torch.stack([torch.randn(4, 8, generator=row) for row in rows])
        return Cond({"prompt_embeds": tokens.bfloat16(), "pooled.embeds": tokens.mean(1)})


def assert_equal(cond, expected):
    assert set(cond) == set(expected)
    for name in expected:
        assert cond[name].dtype == expected[name].dtype
        assert torch.equal(cond[name], expected[name])


def test_embeddings_come_back_bit_equal_in_any_order(tmp_path):
    embed_prompts(EmbeddingCache(tmp_path, "t5-v1.1"), PROMPTS, Encoder(), batch=3, progress=False)
    some = [PROMPTS[7], PROMPTS[0], PROMPTS[7]]
    assert_equal(EmbeddingCache(tmp_path, "t5-v1.1").get(some), Encoder()(some))


def test_a_prompt_is_encoded_once_for_good(tmp_path):
    encode, cache = Encoder(), EmbeddingCache(tmp_path, "t5")
    assert embed_prompts(cache, PROMPTS[:5] + PROMPTS[:5], encode, progress=False) == 5
    assert embed_prompts(cache, PROMPTS, encode, progress=False) == 5
    assert embed_prompts(EmbeddingCache(tmp_path, "t5"), PROMPTS, encode, progress=False) == 0
    assert encode.seen == PROMPTS
    assert EmbeddingCache(tmp_path, "clip").missing(PROMPTS) == PROMPTS


def test_the_script_of_a_job_learns_that_prompts_were_embedded(tmp_path, monkeypatch):
    monkeypatch.setenv(MARKER, str(tmp_path / "saved"))
    EmbeddingCache(tmp_path / "cache", "t5").add(PROMPTS[:1], Encoder()(PROMPTS[:1]))
    assert (tmp_path / "saved").exists()


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_encoded(tmp_path):
    (tmp_path / "notes.txt").touch()
    encode, cache = Encoder(), EmbeddingCache(tmp_path / "notes.txt", "t5")
    with refused("notes.txt/t5", "prompts.cache", "--cache"):
        embed_prompts(cache, PROMPTS, encode, progress=False)
    assert not encode.seen


def test_a_complete_cache_is_only_read(tmp_path, monkeypatch):
    embed_prompts(EmbeddingCache(tmp_path, "t5"), PROMPTS, Encoder(), progress=False)
    monkeypatch.setattr(files, "why_unwritable", lambda _: "Read-only file system")
    assert embed_prompts(EmbeddingCache(tmp_path, "t5"), PROMPTS, Encoder(), progress=False) == 0
    with refused("prompts.cache", "Read-only"):
        embed_prompts(EmbeddingCache(tmp_path, "t5"), ["new"], Encoder(), progress=False)


def test_a_killed_run_leaves_whole_shards_and_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "PROMPTS_PER_SHARD", 4)
    with pytest.raises(KeyboardInterrupt):
        embed_prompts(
            EmbeddingCache(tmp_path, "t5"), PROMPTS, Encoder(fail_after=6), batch=2, progress=False
        )
    (tmp_path / "t5" / ".0123.part.safetensors").write_bytes(b"half a sha")
    cache = EmbeddingCache(tmp_path, "t5")
    assert cache.missing(PROMPTS) == PROMPTS[4:]
    assert embed_prompts(cache, PROMPTS, Encoder(), progress=False) == 6
    assert_equal(cache.get(PROMPTS), Encoder()(PROMPTS))


def test_a_reader_sees_what_another_writer_adds(tmp_path):
    reader, writer = EmbeddingCache(tmp_path, "t5"), EmbeddingCache(tmp_path, "t5")
    with refused("'a scene with 0 circles'", "tdmvid embed"):
        reader.get(PROMPTS[:2])
    writer.add(PROMPTS[:2], Encoder()(PROMPTS[:2]))
    assert_equal(reader.get(PROMPTS[:2]), Encoder()(PROMPTS[:2]))


def test_what_another_machine_wrote_may_appear_a_little_later(tmp_path):
    """A shared file system can show the state of a folder from a minute ago."""
    reader, writer = EmbeddingCache(tmp_path, "t5"), EmbeddingCache(tmp_path, "t5")
    later = threading.Timer(0.5, writer.add, (PROMPTS[:2], Encoder()(PROMPTS[:2])))
    later.start()
    assert reader.missing(PROMPTS[:2], patience=30) == []
    later.join()
    began = time.monotonic()
    assert (
        reader.missing(PROMPTS[:3], patience=0.2) == PROMPTS[2:3] and time.monotonic() - began < 5
    )


def test_rows_that_share_memory_are_kept(tmp_path):
    cache, one = EmbeddingCache(tmp_path, "t5"), Encoder()(PROMPTS[:1])
    cache.add(PROMPTS[:3], one.expand(3))
    assert_equal(cache.get(PROMPTS[:3]), one.expand(3))


def test_a_broken_or_foreign_shard_is_named(tmp_path):
    EmbeddingCache(tmp_path, "t5").add(PROMPTS, Encoder()(PROMPTS))
    (shard,) = (tmp_path / "t5").iterdir()
    whole = shard.read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with refused(shard.name):
            EmbeddingCache(tmp_path, "t5").missing(PROMPTS)
    save_file({"weight": torch.zeros(2)}, shard)
    with refused(shard.name, "'t5'"):
        EmbeddingCache(tmp_path, "t5").missing(PROMPTS)


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    """Everything that is read equals what was written, or the error is one line that names the
    file.
    """
    EmbeddingCache(tmp_path, "t5").add(PROMPTS, Encoder()(PROMPTS))
    (shard,) = (tmp_path / "t5").iterdir()
    whole = shard.read_bytes()
    draw = random.Random(0)
    header = int.from_bytes(whole[:8], "little") + 8
    places = [draw.randrange(header) for _ in range(60)]
    places += [draw.randrange(header, len(whole)) for _ in range(30)]
    noticed = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        shard.write_bytes(damaged)
        cache = EmbeddingCache(tmp_path, "t5")
        try:
            found = cache.get(PROMPTS)
        except ValueError as error:
            noticed += 1
            assert str(error).count("\n") == 0 and (shard.name in str(error) or "t5" in str(error))
        else:
            assert_equal(found, Encoder()(PROMPTS))
    assert noticed > 80  # flips in the padding of the header change nothing


def test_tensors_of_another_shape_are_refused_by_name(tmp_path):
    EmbeddingCache(tmp_path, "t5").add(PROMPTS, Encoder()(PROMPTS))
    (shard,) = (tmp_path / "t5").iterdir()
    with safe_open(shard, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    save_file({name: x[:-1].contiguous() for name, x in tensors.items()}, shard, metadata=metadata)
    with refused(shard.name, "'a scene with 3 circles'"):
        EmbeddingCache(tmp_path, "t5").get(PROMPTS[3:4])
    for foreign in (tensors, {"weight": torch.zeros(2)}):
        save_file(foreign, shard, metadata={"fingerprint": "t5"})
        with refused(shard.name):
            EmbeddingCache(tmp_path, "t5").missing(PROMPTS)


def test_embeddings_that_are_not_finite_are_not_kept(tmp_path):
    cache, cond = EmbeddingCache(tmp_path, "t5"), Encoder()(PROMPTS)
    cond["prompt_embeds"][3, 0, 0] = torch.inf
    with refused("'a scene with 3 circles'", "model.dtype"):
        cache.add(PROMPTS, cond)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_shards_of_unlike_encoders_are_not_stacked(tmp_path):
    cache = EmbeddingCache(tmp_path, "t5")
    cache.add(PROMPTS[:1], Cond({"prompt_embeds": torch.zeros(1, 4, 8)}))
    cache.add(PROMPTS[1:2], Cond({"prompt_embeds": torch.zeros(1, 5, 8)}))
    with refused("'a scene with 1 circles'"):
        cache.get(PROMPTS[:2])


@pytest.mark.parametrize("fingerprint", ["", "a/b", "..", ".hidden"])
def test_a_fingerprint_stays_inside_the_cache(tmp_path, fingerprint):
    with refused(repr(fingerprint)):
        EmbeddingCache(tmp_path, fingerprint)
