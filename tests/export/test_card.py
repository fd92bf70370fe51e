"""The model card: training config, code, scores, and prompts as plain text."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from cards import card_blocks
from exported import PROMPTS, latents

from tdmvid.config import objective_settings
from tdmvid.export.bundle import _teacher
from tdmvid.export.card import _learned_guidance, _recipe, _samples, _trained_with
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_run
from tdmvid.export.student import Provenance, describe_method
from tdmvid.sampling.shots import noise
from tdmvid.sampling.student import weights_of


@pytest.fixture
def scored(run):
    """The folder of a run whose exported student was scored by its own program and by VBench."""
    export_run(run / "lora", run, ExportRequest(prompts=PROMPTS))
    own = {"weights": weights_of(run / "lora")}
    (run / "scores.json").write_text(
        json.dumps(
            own
            | {
                "protocol": "8 prompts",
                "columns": [{"key": "all", "label": "all right", "unit": "%"}],
                "samplers": [{"name": "student", "nfe": 4, "metrics": {"all": {"value": 0.957}}}],
            }
        )
    )
    (run / "vbench").mkdir()
    (run / "vbench" / "results.json").write_text(json.dumps(own))
    (run / "vbench" / "results.md").write_text(
        "# VBench: mine\n\n| temporal_flickering | 97.50 [97.20, 97.70] |\n"
    )
    yield run
    (run / "scores.json").unlink()
    shutil.rmtree(run / "vbench")
    shutil.rmtree(run / "lora")


@pytest.mark.parametrize(
    "facts, row",
    [
        (None, None),
        ({"guidance": 1.0}, None),
        ({"guidance": 1.0, "guidance_2": 1.0}, None),
        ({"guidance": 4.0}, ""),
        ({"guidance": 4.0, "guidance_2": 3.0}, ", low-noise expert 3"),
        ({"guidance": 1.0, "guidance_2": 3.0}, ", low-noise expert 3"),
        ({"guidance": 6.0, "use_dynamic_cfg": True}, " (`use_dynamic_cfg`)"),
        ({"guidance": 6.0, "guidance_interval": [0.2, 0.9]}, " at times from 0.2 to 0.9"),
    ],
)
def test_the_card_states_the_guidance_of_the_training(facts, row):
    backbone = SimpleNamespace(stock=SimpleNamespace(guidance=lambda cfg: {"guidance_scale": cfg}))
    told = _learned_guidance(facts and facts | {"negative_prompt": ""}, backbone)
    expected = [] if row is None else [f"`guidance_scale={facts['guidance']:g}`{row}"]
    assert [value.removesuffix(" (1 is noise)") for value in told.values()] == expected


def test_an_export_states_the_guidance_that_a_stock_call_needs_and_its_interval():
    objective = {"cfg": 6.0, "cfg_2": None, "use_dynamic_cfg": False, "cfg_interval": [0.0, 1.0]}
    config = {"objective": objective, "prompts": {"negative": "blurry"}}
    assert _teacher(config) == {"guidance": 6.0, "negative_prompt": "blurry"}
    shifted = config | {"log": {"teacher_shift": 8.0}}
    assert _teacher(shifted, flow=True)["shift"] == 8.0
    assert "shift" not in _teacher(shifted)
    objective |= {"use_dynamic_cfg": True, "cfg_interval": [0.1, 0.9]}
    times = {"use_dynamic_cfg": True, "guidance_interval": [0.1, 0.9]}
    assert _teacher(config) == {"guidance": 6.0, "negative_prompt": "blurry"} | times


@pytest.mark.slow
def test_the_card_tells_what_a_user_and_a_hub_need(scored, base, tmp_path):
    licence = base.folder / "README.md"
    licence.write_text(
        "---\nlicense: other\nlicense_name: cogvideox\nlicense_link:"
        " https://example.org/LICENSE\n---\n# base\n"
    )
    try:
        request = ExportRequest(("comfyui",), prompts=PROMPTS, hub_base="owner/base")
        export_run(tmp_path / "out", scored, request)
    finally:
        licence.unlink()
    card = (tmp_path / "out" / "README.md").read_text()
    head = re.match(r"---\n(.*?)\n---\n", card, re.S)[1].splitlines()
    assert {
        "license: other",
        "license_name: cogvideox",
        "library_name: diffusers",
        "pipeline_tag: text-to-video",
        "- lora",
        "base_model: owner/base",
        "base_model_relation: adapter",
    } <= set(head)
    for text in (
        "[999, 749, 499, 249]",
        "| guidance scale | `guidance_scale=1.0` (off) |",
        "rank 2, alpha 6",
        "9 x 32 x 32, 8 fps",
        "| student | 4 | 95.7 % |",
        "8 prompts",
        "### VBench: mine",
        "| temporal_flickering | 97.50 [97.20, 97.70] |",
        "applies: cogvideox (https://example.org/LICENSE)",
        '"lr": 0.05',
        f"[{PROMPTS[1]}](samples/1.mp4)",
        "Iteration 4.",
        "comfyui/tiny_4steps.safetensors",
    ):
        assert text in card
    assert "cache" not in card and str(base.folder) not in card
    assert load_pipeline(tmp_path / "out", base=str(base.folder)).transformer.peft_config
    assert (tmp_path / "out" / "samples" / "1.mp4").stat().st_size > 0


def test_a_prompt_on_a_card_is_text_and_never_markup():
    prompt = "a](javascript:x) <img src=x>\n\n# b | c"
    (_, listed) = _samples(["samples/0.mp4"], (prompt,))
    assert listed == r"* [a\](javascript:x) \<img src=x\> \# b \| c](samples/0.mp4)"


def test_a_card_s_recipe_names_no_folder_of_the_machine():
    text = "".join(
        _recipe(
            {
                "out": "/home/ann/run",
                "init": "/home/ann/first/lora",
                "evaluate": {"config": "/home/ann/eval.json"},
                "model": {"path": "/home/ann/base"},
                "prompts": {"path": "/home/ann/p.txt", "limit": 3, "images": "/home/ann/stills"},
                "rewards": [{"function": "hps", "model": "/Users/ann/hps"}],
                "objective": {"kind": "gan"},
                "real": {"path": "/home/ann/clips", "limit": 9},
            },
            {"path": "/home/ann/base"},
        )
    )
    assert (
        '"first/lora"' in text
        and '"path": "base"' in text
        and '"limit": 3' in text
        and '"images": "stills"' in text
        and '"model": "hps"' in text
        and "ann" not in text
    )


@pytest.mark.parametrize(
    "kind, words",
    [
        ("tdm", "by Trajectory Distribution Matching (arXiv 2503.06674)."),
        ("dmd2", "by DMD2 without its adversarial term (arXiv 2405.14867)."),
        ("fisher", "with the Fisher divergence."),
        ("gan", "with an adversarial term."),
    ],
)
def test_a_card_names_the_method(kind, words):
    assert describe_method(objective_settings()[kind]()).endswith(words)


@pytest.mark.parametrize("solver", ["ddim", "dpm++", "renoise"])
def test_a_card_says_if_the_sampler_is_not_that_of_training(solver):
    config = {"objective": {"solver": solver}}
    said = _trained_with(SimpleNamespace(provenance=Provenance(config)))
    assert (f"`{solver}`" in said) == (solver != "ddim") == bool(said)


@pytest.mark.slow
def test_the_card_s_python_runs_and_gives_the_student(run, base, tmp_path):
    out = tmp_path / "out"
    export_run(out, run, ExportRequest(prompts=PROMPTS))
    code, short = card_blocks(out)
    expected = latents(base, out)
    for source in (code.split("pipe.scheduler")[0], short):
        names = {}
        exec(source, names)
        pipeline = names["pipe"]
        pipeline.scheduler = load_pipeline(out).scheduler
        pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal = 8, 4
        z = torch.stack([noise(prompt, 7, base.latent_shape()) for prompt in PROMPTS])
        torch.testing.assert_close(
            base.stock.latents(pipeline, z, base.encode_prompts(list(PROMPTS)), steps=4), expected
        )
    whole, written = code.rsplit("\n", 3)[0], code.rsplit("\n", 2)[1]
    exec(whole, {})
    assert written == 'export_to_video(video, "video.mp4", fps=8)'


@pytest.mark.slow
def test_a_card_has_the_scores_of_these_very_weights_alone(scored, tmp_path):
    def cards(**choices):
        out = {}
        for name, choice in choices.items():
            export_run(tmp_path / name, scored, ExportRequest(prompts=PROMPTS), **choice)
            out[name] = [
                part in (tmp_path / name / "README.md").read_text() for part in ("95.7 %", "97.50")
            ]
        return out

    first = sorted((scored / "checkpoints").glob("step_*"))[0]
    assert cards(scored={}, earlier={"checkpoint": first}, raw={"weights": "raw"}) == {
        "scored": [True, True],
        "earlier": [False, False],
        "raw": [False, False],
    }
    (scored / "vbench" / "results.json").write_text(
        json.dumps({"weights": "of a LoRA that lay there before"})
    )
    assert cards(other={}) == {"other": [True, False]}
