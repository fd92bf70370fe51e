"""A tiny pipeline of each family and variant, for the contract tests."""

import diffusers
import pytest
import torch
from families import BUILDERS

from tdmvid.backbones.encoded_images import as_pil
from tdmvid.backbones.registry import families, load_backbone
from tdmvid.config import ModelConfig
from tdmvid.data.video import write_image

PROMPTS = ["a red circle moves left", "a blue square"]
CASES = [
    (name, variant)
    for name in sorted(families())
    for variant in (BUILDERS[name].VARIANTS if name in BUILDERS else [None])
]
FIRST = dict(reversed(CASES))  # the quick suite runs one variant of most families
LARGE = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
PARAMS = [
    pytest.param(
        case, marks=() if FIRST[case[0]] == case[1] and case[0] not in LARGE else pytest.mark.slow
    )
    for case in CASES
]


class Case:
    """A tiny pipeline folder, read by diffusers and by our backbone."""

    def __init__(self, name, variant, folder):
        self.builder, self.folder, self.name = BUILDERS[name], folder, name
        self.experts = variant == "experts"
        self.size = self.builder.SIZE
        torch.manual_seed(0)
        self.built = self.builder.build(variant)
        self.built.save_pretrained(folder)

    def need_one_network(self):
        """Skip tests that two experts do not support, see tests/roles/test_experts.py."""
        if self.experts:
            pytest.skip("two experts are trained as LoRAs, without a discriminator")

    def backbone(self, folder=None, **changes):
        return load_backbone(ModelConfig(path=str(folder or self.folder), **changes), self.size)

    def stock(self, folder=None):
        pipeline = getattr(diffusers, self.name).from_pretrained(folder or self.folder)
        pipeline.set_progress_bar_config(disable=True)
        getattr(self.builder, "prepare", lambda pipeline: None)(pipeline)
        return pipeline

    def another_base(self, folder):
        """Return the same architecture with other network weights."""
        pipeline = self.stock()
        network = getattr(pipeline, families()[self.name].spec.network_folder)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        pipeline.save_pretrained(folder)
        return folder

    def images(self):
        """Return the given first frames of the prompts: [2, 3, H, W] in [-1, 1]."""
        coarse = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(4))
        size = (self.size.height, self.size.width)
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
        return (smooth * 255).round() / 255 * 2 - 1  # as in a file of 8 bits

    def cond(self, backbone):
        """Return the conditions of the prompts, including images where the family takes images."""
        return backbone.encode_items(PROMPTS, self.images() if backbone.takes_images else None)

    def write_prompts(self, folder):
        """Write the prompts to train on: a list, or a table of prompts and images."""
        if not families()[self.name].takes_images:
            (folder / "prompts.txt").write_text("\n".join(PROMPTS))
            return folder / "prompts.txt"
        for index, image in enumerate(self.images()):
            write_image(folder / f"{index}.png", image)
        rows = [f"{index}.png,{prompt}" for index, prompt in enumerate(PROMPTS)]
        (folder / "items.csv").write_text("\n".join(["image,prompt", *rows]))
        return folder / "items.csv"

    def no_cond(self, backbone, count=1):
        """Return the null condition: an empty prompt, and a grey image where one is required."""
        blank = backbone.blank_images(count) if backbone.takes_images else None
        return backbone.encode_items([""] * count, blank)

    def row_by_row(self, pipeline, images):
        """Return arguments that make a one-image pipeline encode a new image for each row."""
        rows, vae = iter(pipeline.video_processor.preprocess(images)), pipeline.vae

        def encode_next(video):
            given = video.clone()
            given[:, :, 0] = next(rows)
            return type(vae).encode(vae, given)

        vae.encode = encode_next
        if getattr(pipeline, "image_encoder", None) is not None:
            embeds = pipeline.encode_image(as_pil(images * 2 - 1))
            pipeline.transformer.register_forward_pre_hook(
                lambda _, args, named: (args, named | {"encoder_hidden_states_image": embeds}),
                with_kwargs=True,
            )
        return {"image": images[:1], "generator": [torch.Generator() for _ in images]}

    def sample(self, pipeline, backbone, z, *, steps=4, cfg=1.0, output="latent"):
        """Call the stock pipeline as a user does, from prompts, with the model card's arguments."""
        call = eval(f"dict({backbone.stock.arguments_code()})")
        if backbone.takes_images:
            call["image"] = (self.images() + 1) / 2
        if backbone.stock.one_image_a_call:
            call |= self.row_by_row(pipeline, call["image"])
        stock = backbone.stock
        stock.set_guidance(pipeline, cfg)
        made = pipeline(
            prompt=list(PROMPTS),  # one pipeline changes the list
            latents=None if z is None else stock.write_latents(z),
            num_inference_steps=steps,
            output_type=output,
            return_dict=False,
            **stock.negative_text(len(PROMPTS), cfg),
            **stock.guidance(cfg),
            **call,
        )[0]
        return stock.read_latents(made) if output == "latent" else made

    def unpacked(self, stepped):
        """Return what a pipeline's scheduler steps in the layout of the backbone's latents."""
        return getattr(self.builder, "unpacked", lambda x: x)(stepped)


def noise(backbone, batch=2):
    return torch.randn(batch, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))
