"""Memory that a plan counts beside the network: text encoders, and decoding a sample or a tile."""

import copy
import weakref

import pytest
import torch
from contract_cases import CASES, Case, noise
from refusals import refused
from torch.utils._python_dispatch import TorchDispatchMode

from tdmvid.backbones.registry import families
from tdmvid.config import ModelConfig
from tdmvid.parallel.arithmetic import autocast
from tdmvid.plan.cost import decoding_bytes

FIRST = [
    (name, variant)
    for index, (name, variant) in enumerate(CASES)
    if not index or CASES[index - 1][0] != name
]


@pytest.fixture(scope="module", params=FIRST, ids=lambda case: case[0])
def case(request, tmp_path_factory):
    return Case(*request.param, tmp_path_factory.mktemp(request.param[0]))


def test_the_counted_text_encoders_are_those_of_the_pipeline(case):
    """They are counted in the dtype in which they are loaded; missing ones count nothing."""
    parts = [
        part
        for name, part in case.built.components.items()
        if name.startswith("text_encoder") and part is not None
    ]
    held = sum(p.numel() for part in parts for p in part.parameters())
    counted = [
        families()[case.name].spec.text_bytes(case.folder, ModelConfig(dtype=dtype))
        for dtype in ("float32", "bfloat16")
    ]
    assert counted == [4 * held, 2 * held] and held > 0


@pytest.fixture
def small_tiles(case, monkeypatch):
    """Set tiles of 16 pixels with 50 % overlap, under any attribute names of the autoencoder."""
    kind = families()[case.name].spec.vae_class
    load = kind.from_config.__func__

    def made(cls, *args, **kwargs):
        vae = load(cls, *args, **kwargs)
        latents = (
            16 >> (len(vae.config.block_out_channels) - 1)
            if "block_out_channels" in vae.config
            else 0
        )
        for name in [name for name in vars(vae) if name.startswith("tile_")]:
            setattr(
                vae,
                name,
                (
                    0.5
                    if "overlap" in name
                    else latents
                    if "latent" in name
                    else 8
                    if "stride" in name
                    else 16
                ),
            )
        return vae

    monkeypatch.setattr(kind, "from_config", classmethod(made))


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("tiling", [False, True], ids=["whole", "tiles"])
def test_no_more_is_decoded_together_than_planned_and_of_a_tiled_sample_one_tile(case, tiling):
    backbone, family = case.backbone(tiling=tiling), families()[case.name]
    planned, shape = family.spec.empty_vae(
        backbone.network, case.folder, backbone.config, case.size
    )
    vae, seen = backbone.vae, []
    vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    videos = backbone.decode(noise(backbone, 3))
    assert videos.shape == (3, 3, case.size.frames, case.size.height, case.size.width)
    together = min(3, family.samples_at_once(case.size, tiling=tiling))
    assert all(part[0] == together for part in seen) and shape[0] == 1
    assert (max(part[-2] for part in seen), max(part[-1] for part in seen)) == shape[-2:]
    whole = family.spec.vae_latents(backbone.network, case.folder, case.size)[-2:]
    assert all(
        (part < side) if tiling else (part == side)
        for part, side in zip(shape[-2:], whole, strict=True)
    )
    assert [p.dtype for p in planned.parameters()] == [p.dtype for p in vae.parameters()]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.slow
def test_tiles_are_those_of_the_library(case):
    """Images equal those of `pipe.vae.enable_tiling()`.

    Cached latents depend on tiling, cached embeddings do not.
    """
    plain, tiled, z = case.backbone(), case.backbone(tiling=True), noise(case.backbone(), 1)
    whole = plain.decode(z)
    plain.vae.enable_tiling()
    torch.testing.assert_close(tiled.decode(z), plain.decode(z))
    assert tiled.decode(z).shape == whole.shape and (tiled.decode(z) - whole).abs().max() > 1e-3
    assert (
        tiled.video_fingerprint() != plain.video_fingerprint()
        and tiled.text_fingerprint() == plain.text_fingerprint()
    )


class Known(torch.nn.Module):
    """Decodes n values to 4n through a buffer of 12n.

    At the peak there are two tensors of 4n: the first is still alive when the second is made.
    """

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def decode(self, latents):
        first = latents.repeat(4)
        second = first * self.weight
        third = first + second
        del first, second
        return third.view(2, -1) - 1


def test_the_counted_peak_is_of_what_is_there_at_once():
    """Views and freed tensors do not count, and the latents existed before."""
    with torch.device("meta"):
        vae = Known()
    assert decoding_bytes(vae, (100,)) == 12 * 100 * 4


def test_tiles_that_the_library_would_join_wrongly_are_refused_at_the_start(tmp_path):
    """With tiles of two latents that overlap by 1/6, diffusers makes 50 x 47 pixels of 32 x 32."""
    case = Case("CogVideoXPipeline", "sincos", tmp_path)
    with refused("tiles", "false"):
        case.backbone(tiling=True)


class Casts(TorchDispatchMode):
    """Counts casts of `weights` inside its context: the total, and the maximum alive at a time."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.made, self.most = {id(weight) for weight in weights}, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and id(args[0]) in self.weights:
            self.made.append(weakref.ref(out))
            self.most = max(self.most, sum(cast() is not None for cast in self.made))
        return out


def test_no_second_copy_of_a_whole_network_is_made_for_a_call(case):
    """Concerns trained float32 weights. When sharded, every rank would hold such a copy."""
    backbone = case.backbone(dtype="bfloat16")
    network = copy.deepcopy(backbone.network).float().requires_grad_(True)
    dtype = torch.bfloat16
    with torch.no_grad(), autocast(network, dtype), Casts(network.parameters()) as casts:
        backbone.predict_x0(
            network,
            noise(backbone, 1),
            backbone.process.snap(torch.full((1,), 0.5)),
            case.cond(backbone).rows(slice(1)),
        )
    assert len(casts.made) > 8 and casts.most <= 4
