"""A user's LoRA that also changes text encoders: embeddings and exports equal stock code."""

import json

import pytest
import torch
from cards import run_card
from contract_cases import Case
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scales import assert_close
from user_adapter_cases import student_of

from tdmvid.adapters.load import load_lora
from tdmvid.adapters.teacher import load_teacher
from tdmvid.cli.main import main
from tdmvid.config import ModelConfig, from_dict, load_config
from tdmvid.data.embeddings import EmbeddingCache
from tdmvid.export.bundle import write_bundles
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.student import with_merged
from tdmvid.sampling.student import use_student
from tdmvid.train.trainer import train

PROMPTS = ["a red circle moves left", "a blue square"]
GRID, SCALES = (2, 2.0), (0.75, -0.5)
ENCODERS = {
    "StableDiffusionPipeline": ["text_encoder"],
    "StableDiffusionXLPipeline": ["text_encoder", "text_encoder_2"],
    "StableDiffusion3Pipeline": ["text_encoder", "text_encoder_2"],
    "FluxPipeline": ["text_encoder"],
}
pytestmark = pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=() if name == "StableDiffusionPipeline" else pytest.mark.slow)
        for name in ENCODERS
    ],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    return Case(request.param, None, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def backbone(case):
    return case.backbone()


def adapted(module, targets, rank, alpha):
    """Return the tensors and settings of a LoRA of a module, with nonzero B."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    inject_adapter_in_model(config, module, "default")
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    state = get_peft_model_state_dict(module, adapter_name="default")
    return {key: x.contiguous() for key, x in state.items()}, config


def write_lora(case, backbone, folder, seed, rank, encoders):
    """Write a LoRA of the network and of some text encoders as diffusers does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = case.stock()
        network, config = adapted(getattr(pipeline, backbone.lora.part), ["to_q"], rank, 5)
        text = {
            part: adapted(getattr(pipeline, part), ["q_proj", "fc1"], rank + 1, 4)
            for part in encoders
        }
    backbone.lora.save(folder, network, config, text)
    return folder


@pytest.fixture(scope="module")
def loras(case, backbone, tmp_path_factory):
    """Two LoRAs: one changes all text encoders, the other only the first."""
    folder, encoders = tmp_path_factory.mktemp("users"), ENCODERS[case.name]
    return [
        write_lora(case, backbone, folder / "style", 1, 3, encoders),
        write_lora(case, backbone, folder / "subject", 2, 1, encoders[:1]),
    ]


def teacher_with(case, loras, scales=SCALES):
    adapters = [{"path": str(path), "scale": x} for path, x in zip(loras, scales, strict=True)]
    config = from_dict(ModelConfig, {"path": str(case.folder), "adapters": adapters}, "model")
    return load_teacher(config, case.size)


@pytest.fixture(scope="module")
def teacher(case, loras):
    return teacher_with(case, loras)


def stock_embeddings(case, backbone, loras, scales=SCALES):
    """Return the embeddings of the stock pipeline with the LoRAs, loaded by stock code."""
    pipeline, names = case.stock(), [f"users_{i}" for i in range(len(loras))]
    for name, path in zip(names, loras, strict=True):
        pipeline.load_lora_weights(path, adapter_name=name)
    pipeline.set_adapters(names, list(scales))
    with backbone.encoding_with(pipeline):
        return backbone.encode_prompts(PROMPTS)


def test_prompts_are_embedded_with_the_user_s_loras(case, backbone, teacher, loras):
    theirs = stock_embeddings(case, backbone, loras)
    ours, plain = teacher.encode_prompts(PROMPTS), backbone.encode_prompts(PROMPTS)
    of_t5 = {"prompt_embeds"} if case.name == "FluxPipeline" else set()
    assert theirs.keys() > of_t5
    for name, expected in theirs.items():
        assert_close(ours[name], expected, 1e-5)
        moved = (expected - plain[name]).norm() > 0.01 * plain[name].norm()
        assert moved != (name in of_t5)


def test_the_cache_of_embeddings_knows_the_loras(case, backbone, teacher, loras):
    keys = {
        backbone.text_fingerprint(),
        teacher.text_fingerprint(),
        teacher_with(case, loras, (0.75, 0.5)).text_fingerprint(),
    }
    assert len(keys) == 3 and teacher_with(case, loras).text_fingerprint() in keys


def test_prompts_are_embedded_ahead_with_the_user_s_loras(case, teacher, loras, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    adapters = [{"path": str(path), "scale": x} for path, x in zip(loras, SCALES, strict=True)]
    cache = tmp_path / "cache"
    config = {
        "model": {"path": str(case.folder), "adapters": adapters},
        "video": {name: getattr(case.size, name) for name in ("frames", "height", "width")},
        "prompts": {"path": str(tmp_path / "prompts.txt"), "cache": str(cache)},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    main(["embed", "--config", str(tmp_path / "config.json")])
    stored = EmbeddingCache(cache, teacher.text_fingerprint())
    assert stored.missing(PROMPTS) == []


def test_a_kohya_file_gives_the_same_embeddings(case, backbone, loras, tmp_path):
    """Not compared with stock code, which drops attention layers from such files."""
    kinds, state = {"lora_A": "lora_down", "lora_B": "lora_up"}, {}
    for key, x in load_file(loras[0] / backbone.lora.file).items():
        name, kind, _ = key.rsplit(".", 2)
        part, module = name.split(".", 1)
        if part.startswith("text"):
            number = "" if len(ENCODERS[case.name]) == 1 else "2" if part[-1] == "2" else "1"
            part, module = f"te{number}", "text_model." + module.removeprefix("text_model.")
        name = f"lora_{part}_{module.replace('.', '_')}"
        state |= {f"{name}.{kinds[kind]}.weight": x, f"{name}.alpha": torch.tensor(2.5)}
    save_file(state, tmp_path / "kohya.safetensors")
    one = [tmp_path / "kohya.safetensors"]
    scale = 0.5 * 2.5 / 4  # 2.5 is the alpha here, and 4 the rank and the alpha there
    theirs = stock_embeddings(case, backbone, loras[:1], (scale,))
    ours = teacher_with(case, one, (0.5,)).encode_prompts(PROMPTS)
    for name, expected in theirs.items():
        assert_close(ours[name], expected, 1e-5)


@pytest.fixture(scope="module")
def student(teacher, case):
    return student_of(teacher, case, GRID)


def test_both_exports_give_the_student_from_prompts(
    case, backbone, student, loras, tmp_path_factory
):
    out = tmp_path_factory.mktemp("out")
    stack, merged = out / "lora", out / "lora_merged"
    written = write_bundles(with_merged({stack: student}))
    assert written[merged]["text_encoders"] == ENCODERS[case.name]
    assert "text_encoders" not in written[stack]
    for folder in (stack, merged):
        for pipeline in (
            run_card(folder, users=loras[0].parent),
            load_pipeline(folder),
        ):
            pipeline.set_progress_bar_config(disable=True)
            found = case.sample(pipeline, backbone, student.reference.z, steps=GRID[0])
            assert_close(found, student.latents, 1e-4)
    with safe_open(merged / backbone.lora.file, "pt") as file:
        parts = {key.partition(".")[0] for key in file.keys()}
    assert parts == {backbone.lora.part, *ENCODERS[case.name]}
    with refused(merged, "text encoders"):
        use_student(backbone, merged)
    use_student(teacher_with(case, loras), stack)


@pytest.mark.parametrize(
    "request_", [ExportRequest(fuse=True), ExportRequest(formats=("diffusers", "comfyui"))]
)
def test_a_file_that_cannot_hold_text_encoders_is_refused(student, loras, request_, tmp_path):
    setting = "fuse" if request_.fuse else "comfyui"
    with refused(setting, student.adapters[0].where):
        write_bundles(with_merged({tmp_path / "lora": student}), request_)
    assert not any(tmp_path.iterdir())


def test_a_text_part_in_another_layout_or_of_another_model_is_refused(
    case, backbone, loras, tmp_path
):
    state = load_file(loras[0] / backbone.lora.file)
    other = {f"clip_l.{i}.weight": x.clone() for i, x in enumerate(state.values())}
    save_file(state | other, tmp_path / "other.safetensors")
    with refused("model.adapters[0].path", tmp_path / "other.safetensors", "clip_l.0.weight"):
        teacher_with(case, [tmp_path / "other.safetensors"], (1.0,))
    text = [key for key in state if key.startswith("text_encoder.") and "lora_A" in key]
    wider = {key: torch.cat([state[key]] * 2, 1) for key in text}
    save_file(state | wider, tmp_path / "wider.safetensors")
    with refused("text_encoder", "model.adapters"):
        teacher_with(case, [tmp_path / "wider.safetensors"], (1.0,)).encode_prompts(PROMPTS)


@pytest.mark.slow
def test_a_run_trains_on_these_prompts_and_exports_both_forms(case, loras, tmp_path):
    settings = {
        "model": {"path": str(case.folder), "adapters": [{"path": str(loras[0])}]},
        "video": {"frames": 1, "height": case.size.height, "width": case.size.width},
        "prompts": {"path": str(case.write_prompts(tmp_path)), "cache": str(tmp_path / "cache")},
        "steps": 2,
        "lora": {"rank": 2},
        "log": {"sample_every": 0, "sample_prompts": ["a circle"], "teacher_steps": 2},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    out = train(load_config(tmp_path / "tiny.json"))
    for name in ("lora", "lora_merged"):
        facts = json.loads((out / name / "export.json").read_text())
        assert facts["error"] <= facts["tolerance"]


@pytest.mark.parametrize("kind", ["mlp", "prefix"])
def test_a_text_part_is_loaded_whatever_layers_and_names_it_has(
    case, backbone, loras, tmp_path, kind
):
    """diffusers itself loads no part without attention layers, nor files with this prefix."""
    state = load_file(loras[0] / backbone.lora.file)
    if kind == "mlp":
        state = {key: x for key, x in state.items() if "q_proj" not in key}
    else:
        prefix = f"{backbone.lora.part}."
        state = {key.replace(prefix, f"module.{prefix}"): x for key, x in state.items()}
    save_file(state, tmp_path / backbone.lora.file)
    expected = teacher_with(case, [tmp_path], (1.0,)).encode_prompts(PROMPTS)
    pipeline = case.stock()
    load_lora(pipeline, tmp_path, backbone.lora)
    with backbone.encoding_with(pipeline):
        found = backbone.encode_prompts(PROMPTS)
    for name, plain in backbone.encode_prompts(PROMPTS).items():
        assert_close(found[name], expected[name], 1e-5)
        moved = (expected[name] - plain).norm() > 0.01 * plain.norm()
        assert moved != (case.name == "FluxPipeline" and name == "prompt_embeds")
