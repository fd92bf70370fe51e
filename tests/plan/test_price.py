"""What a plan states about hours, data and disk, and the time model behind it."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from torch._subclasses.fake_tensor import FakeTensorMode

from tdmvid.backbones.registry import ARCHITECTURES, load_backbone, published_bytes
from tdmvid.cli.main import main
from tdmvid.config import ModelConfig
from tdmvid.plan import duration
from tdmvid.plan.cost import Kernels
from tdmvid.plan.describe import describe
from tdmvid.plan.devices import DEFAULT, DEVICES, choose_device
from tdmvid.plan.duration import predict_iteration, predict_samples
from tdmvid.plan.gpu_dtypes import GpuAutocast
from tdmvid.plan.make import make_plan
from tdmvid.plan.price import Terms, price_run
from tdmvid.plan.storage import count_storage
from tdmvid.plan.units import GIB, flops, hours


@pytest.fixture(scope="module")
def traced(tiny_run, tmp_path_factory):
    return make_plan(tiny_run(tmp_path_factory.mktemp("priced")))


def changed(plan, ranks=1, **sections):
    """Return a plan with other settings that do not affect its traces."""
    config = replace(
        plan.config,
        **{name: replace(getattr(plan.config, name), **new) for name, new in sections.items()},
    )
    return replace(plan, config=config, ranks=ranks)


@pytest.fixture(scope="module")
def large(traced):
    """`large(ranks=2, zero_stage=3)`: the same run in half precision, with the compute and weights
    of billions of parameters.
    """
    call = replace(
        traced.calls.network,
        forward_flops=3e14,
        backward_flops=6e14,
        forward_moved=5 * 10**11,
        backward_moved=7 * 10**11,
    )
    made = replace(
        traced,
        calls=replace(traced.calls, network=call),
        weights=replace(traced.weights, base=5 * 10**9, base_bytes=10**10),
    )
    return lambda ranks=1, quantize="none", **parallel: changed(
        made, ranks, model={"dtype": "bfloat16", "quantize": quantize}, parallel=parallel
    )


def seconds(plan, device=DEFAULT, **choices):
    return predict_iteration(plan, DEVICES[device], **choices).total


def test_every_plan_ends_with_hours_and_gpu_hours_on_a_named_device(traced):
    made = changed(traced, ranks=4)
    last = describe(made).splitlines()[-1]
    assert re.search(r"^cost .*GPU-hours on 4 x H100 SXM \(estimated, ", last)
    terms = Terms(device=choose_device("rtx4090"), seconds=1800)
    last = describe(made, terms=terms).splitlines()[-1]
    assert "4 x RTX 4090" in last and "measured, 1800 s" in last and "estimated" not in last


def test_measured_seconds_are_those_of_the_iterations_and_samples_take_their_share(traced):
    made = changed(traced, ranks=2)
    price = price_run(made, Terms(seconds=360.0))
    assert price.hours > 0.8 and price.gpu_hours == 2 * price.hours
    predicted = price.predicted.total
    assert price.hours * 3600 == pytest.approx(
        (made.config.steps * predicted + predict_samples(made, DEVICES[DEFAULT])) * 360 / predicted
    )
    assert price.flops == made.config.steps * 2 * made.flops()


def test_a_device_twice_as_fast_takes_half_the_time(large):
    known = DEVICES["h100"]
    twice = choose_device("h100", tflops=2 * known.tflops, bandwidth=2 * known.bandwidth)
    assert predict_iteration(large(), twice).total == pytest.approx(seconds(large()) / 2)
    assert seconds(large(), "h200") < seconds(large(), "h100") < seconds(large(), "a100-80")
    assert seconds(large(), "a100-80") < seconds(large(), "rtx5090") < seconds(large(), "rtx4090")


def test_float32_is_priced_at_the_rate_without_tf32(large):
    half = large()
    single = replace(
        half, config=replace(half.config, model=replace(half.config.model, dtype="float32"))
    )
    device = DEVICES["h100"]
    assert predict_iteration(single, device).matrix == pytest.approx(
        predict_iteration(half, device).matrix * device.tflops / device.tflops_float32
    )


def test_small_networks_are_bound_by_the_host_that_starts_their_kernels(traced, large):
    small, big = (predict_iteration(made, DEVICES["h100"]) for made in (traced, large()))
    assert small.computing == small.starting > small.matrix + small.memory
    assert big.computing == big.matrix + big.memory > big.starting


def test_sending_grows_with_ranks_and_is_least_where_weights_are_whole(large):
    assert predict_iteration(large(), DEVICES["h100"]).sending == 0
    sent = [
        predict_iteration(large(ranks, zero_stage=3), DEVICES["h100"]).sending
        for ranks in (2, 8, 64, 512)
    ]
    assert sent == sorted(sent) and sent[0] > 0
    assert predict_iteration(large(8, zero_stage=0), DEVICES["h100"]).sending < sent[1] / 10
    assert seconds(large(8, zero_stage=3), "rtx4090") - seconds(large(), "rtx4090") > sent[1]


def test_gathers_that_computing_cannot_hide_are_waited_for(large, monkeypatch):
    made, device = large(8, zero_stage=3), DEVICES["h100"]
    slow = replace(device, link=1.0)
    monkeypatch.setattr(duration, "HIDDEN", 1.0)
    hidden, waited = predict_iteration(made, device), predict_iteration(made, slow)
    assert waited.total == pytest.approx(made.traffic()["weights"] / 0.8e9, rel=0.01)
    assert hidden.sending < 0.01 * hidden.computing


def test_offloading_costs_transfers(large):
    def offloaded(kind):
        made = large(2, zero_stage=3, offload=kind)
        return predict_iteration(made, DEVICES["h100"]).offloaded

    assert 0 == offloaded("none") < offloaded("optimizer") < offloaded("all")


def test_a_base_in_eight_bits_is_made_whole_for_every_call(large):
    whole, rounded = large(), large(quantize="int8")
    uses = whole.base_uses
    assert rounded.moved() - whole.moved() == pytest.approx(3 * whole.weights.base * uses)


def test_kernels_are_counted_with_what_they_move_but_not_views_and_products():
    a, b = torch.ones(8, 4), torch.ones(4, 8)
    with Kernels() as counted:
        (a.t() @ b.t()).view(16)
    assert (counted.count, counted.moved) == (1, 0)
    with Kernels() as counted:
        a.expand(8, 4).mul(2)
        torch.ones(1, 4).expand(8, 4).add(a)
    assert counted.count == 3  # torch.ones launches a kernel too
    read, written = 2 * 8 * 4 * 4 + 4 * 4, 2 * 8 * 4 * 4 + 4 * 4
    assert counted.moved == read + written


def test_a_tensor_that_a_kernel_writes_into_is_not_read():
    x, out = torch.zeros(3, 5), torch.zeros(3, 5)
    with Kernels() as counted:
        torch.mul(x, 2, out=out)
    assert counted.moved == 2 * x.nbytes


@pytest.mark.parametrize("cast", [False, True], ids=["frozen", "autocast"])
def test_a_root_mean_square_norm_is_one_kernel_each_way_as_on_a_gpu(cast):
    with FakeTensorMode(), GpuAutocast(), torch.autocast("cpu", enabled=cast):
        norm = torch.nn.RMSNorm(5, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.zeros(3, 5, dtype=torch.bfloat16, requires_grad=True)
        with Kernels() as forward:
            out = norm(x)
        gradient = torch.zeros_like(out)
        with Kernels() as backward:
            out.backward(gradient)
    statistics, size, width = 3 * 4, out.nbytes, out.element_size() * 5
    casts = (x.nbytes + size + 3 * width // 2) if cast else 0  # of x and of the weight
    assert out.dtype == (torch.float32 if cast else torch.bfloat16)
    assert forward.moved == casts + 2 * size + width + statistics
    casts = (x.nbytes + size) if cast else 0  # of the gradient of x
    assert backward.moved == casts + 3 * size + width + statistics
    assert (forward.count, backward.count) == ((3, 2) if cast else (1, 1))
    assert x.grad.dtype == x.dtype


def test_a_plan_warns_where_its_device_has_not_the_memory(traced):
    needs = replace(traced, pipeline=replace(traced.pipeline, text=30 * GIB))
    for device, warned in (("rtx4090", True), ("rtx5090", False)):
        text = describe(needs, terms=Terms(device=DEVICES[device]))
        assert ("warning: needs 30.0 GiB" in text) == warned


def test_peaks_may_be_given_and_are_named(traced):
    device = choose_device(tflops=500, bandwidth=2)
    assert (device.tflops, device.tflops_float32, device.bandwidth) == (500, 500, 2)
    last = describe(traced, terms=Terms(device=device)).splitlines()[-1]
    assert "500 TFLOP/s and 2 TB/s" in last
    with refused("--device='tpu'", *DEVICES):
        choose_device("tpu")


@pytest.mark.parametrize("option", ["tflops", "bandwidth", "seconds"])
def test_a_peak_of_nothing_is_refused(option, capsys):
    with refused(f"--{option}=0.0", error=SystemExit):
        main(["plan", "--config", "shapes_4nfe", f"--{option}", "0"])


def test_an_embedding_takes_the_disk_that_was_planned(traced):
    made = traced
    backbone = load_backbone(made.config.model, made.config.video)
    with torch.no_grad():
        cond = backbone.encode_prompts(["a red ring"])
    assert made.pipeline.embedding == sum(x.numel() * x.element_size() for x in cond.values())
    storage = count_storage(made)
    assert storage.embeddings == made.prompts * made.pipeline.embedding
    assert storage.download == 0 and storage.total == storage.written > 0


def test_a_download_is_what_the_repository_lists_of_the_parts_that_are_loaded(
    tmp_path, monkeypatch
):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "X"],'
        ' "vae": ["diffusers", "Y"], "safety_checker": ["a", "b"], "tokenizer": ["c", "d"]}'
    )
    sizes = {
        "unet/diffusion_pytorch_model.safetensors": 100,
        "unet/diffusion_pytorch_model.fp16.safetensors": 50,
        "unet/diffusion_pytorch_model.bin": 101,
        "vae/diffusion_pytorch_model.fp16.safetensors": 7,
        "safety_checker/model.safetensors": 1000,
        "whole.safetensors": 5000,
        "tokenizer/vocab.json": 3,
    }
    listed = [SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(siblings=listed)
    )
    assert published_bytes(ModelConfig(path="a/b"), tmp_path) == 107
    assert published_bytes(ModelConfig(path="a/b", variant="fp16"), tmp_path) == 57
    assert published_bytes(ModelConfig(path="a/b"), next(ARCHITECTURES.iterdir())) is None


def test_units_are_those_that_leave_few_digits():
    assert (hours(12.345), hours(0.5), hours(0.01)) == ("12.3 hours", "30 minutes", "36 seconds")
    assert (flops(2.39e19), flops(4.005e15), flops(4.1e17)) == (
        "23.9 EFLOP",
        "4,005 TFLOP",
        "410 PFLOP",
    )
