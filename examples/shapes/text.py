"""The miniature text encoder: a word-level T5 tokenizer and a two-layer T5 encoder.

Both are classes of the transformers library, so a stock CogVideoXPipeline can load and use them. To
bind two colours to two shapes, the encoder must learn word order. It is therefore pretrained on
captions alone and then trained jointly with the transformer.

Shapes: B captions, L = 16 tokens, D = 128 channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from tqdm import tqdm
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tdmvid.shapes import world

MAX_LENGTH, WIDTH = 16, 128
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
_WORDS = ("a", "and", "moving")  # then colours, shapes, directions
_FIRST_ATTRIBUTE = 3 + len(_WORDS)


def build_tokenizer() -> T5Tokenizer:
    """Build a T5Tokenizer (unigram model) whose pieces are the words of the shapes world.

    Returns:
        The tokenizer.
    """
    words = [*_WORDS, *world.COLOURS, *world.SHAPES, *world.DIRECTIONS]
    vocab = [(PAD, 0.0), (EOS, 0.0), (UNKNOWN, 0.0), *((f"\u2581{word}", -1.0) for word in words)]
    return T5Tokenizer(
        vocab=vocab,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        extra_ids=0,
        model_max_length=MAX_LENGTH,
    )


def build_encoder(vocabulary: int) -> T5EncoderModel:
    """Build a T5 encoder with 0.4M parameters and relative positions, without dropout.

    Args:
        vocabulary: Number of tokens.

    Returns:
        The encoder.
    """
    config = T5Config(
        vocab_size=vocabulary,
        d_model=WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5EncoderModel(config)


def token_ids(tokenizer: T5Tokenizer, captions: list[str]) -> Tensor:
    """Tokenize captions with padding to the full length, like CogVideoXPipeline.

    Args:
        tokenizer: The tokenizer.
        captions: B captions.

    Returns:
        Token ids [B, 16].
    """
    batch = tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_LENGTH,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    return batch.input_ids


def encode(encoder: T5EncoderModel, ids: Tensor) -> Tensor:
    """Encode token ids without an attention mask, like CogVideoXPipeline.

    Args:
        encoder: The encoder.
        ids: Token ids [B, 16].

    Returns:
        Embeddings [B, 16, 128].
    """
    return encoder(ids)[0]


class Binding(nn.Module):
    """Predicts all attributes of an object from each of its words, which a pretrained encoder would
    know.

    With denoising alone, the encoder learns far too slowly which colour belongs to which shape.
    """

    sizes = (len(world.COLOURS), len(world.SHAPES), len(world.DIRECTIONS))

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Compute the loss of predicting colour, shape and direction from the words of an object.

        Args:
            embeddings: Embeddings [B, 16, 128].
            ids: Token ids [B, 16].

        Returns:
            Mean cross-entropy (scalar), summed over the three attributes.
        """
        words = torch.stack(
            [ids[:, 0:5], ids[:, 6:11]], 1
        )  # [B, 2, 5]: a COLOUR SHAPE moving DIRECTION
        there = words[..., 2] >= _FIRST_ATTRIBUTE
        guesses = self.read(
            torch.stack([embeddings[:, 0:5], embeddings[:, 6:11]], 1)[there].float()
        )
        total, first = embeddings.new_zeros((), dtype=torch.float32), _FIRST_ATTRIBUTE
        for guess, word, size in zip(
            guesses.split(self.sizes, -1), (1, 2, 4), self.sizes, strict=True
        ):
            label = (words[there][:, word] - first)[:, None].expand(-1, 5)
            total, first = (
                total + nnf.cross_entropy(guess.flatten(0, 1), label.flatten()),
                first + size,
            )
        return total


def pretrain(encoder: T5EncoderModel, binding: Binding, *, iterations: int, seed: int) -> None:
    """Train the encoder and `binding` in place on captions alone, as real T5 is pretrained too.

    Takes half a minute on a CPU.

    Args:
        encoder: The encoder.
        binding: Predicts attributes.
        iterations: Number of iterations.
        seed: Seed of captions and batches.
    """
    tokenizer, generator = build_tokenizer(), torch.Generator().manual_seed(seed)
    ids = token_ids(
        tokenizer, [world.caption(things) for things in world.draw_captions(4000, generator)]
    )
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *binding.parameters()], lr=1e-3, betas=(0.9, 0.99)
    )
    for step in tqdm(range(iterations), desc="text encoder", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, 2 * (1 - step / iterations))
        batch = ids[torch.randint(len(ids), (64,), generator=generator)]
        loss = binding(encode(encoder, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def check_round_trip(tokenizer: T5Tokenizer) -> None:
    """Check that every word of the shapes world is one known token and that captions end with the
    end token.

    Args:
        tokenizer: The tokenizer.

    Raises:
        ValueError: A word is not one known token.
    """
    for text in [
        world.caption((world.Thing(i % 6, i % 4, i % 4), world.Thing((i + 1) % 6, 0, 0)))
        for i in range(12)
    ]:
        ids = token_ids(tokenizer, [text])[0]
        count = len(text.split())
        expected = torch.cat(
            [ids[:count], torch.tensor([1]), torch.zeros(MAX_LENGTH - count - 1, dtype=torch.long)]
        )
        if not torch.equal(ids, expected) or (ids[:count] < 3).any():
            raise ValueError(
                f"{text!r} became tokens {ids.tolist()}: every word must be one known token"
            )
