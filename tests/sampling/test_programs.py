"""`tdmvid latency` and `tdmvid benchmark`, and the scripts that start a command of `tdmvid`."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from refusals import refused

from tdmvid.adapters.bundle import FACTS
from tdmvid.cli.main import main
from tdmvid.scoring import latency

ROOT = Path(__file__).resolve().parents[2]
STARTS = re.compile(r'main\(\[((?:"\w+", )+)\*sys\.argv')
SCRIPTS = [
    path
    for path in sorted([*ROOT.glob("launch/*.py"), *ROOT.glob("eval/*.py")])
    if STARTS.search(path.read_text())
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_starts_its_command(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    words = re.findall(r"\w+", STARTS.search(path.read_text())[1])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: tdmvid {' '.join(words)} ")


@pytest.mark.slow
def test_latency_prints_a_table_and_writes_its_numbers(student, tmp_path, capsys):
    out = tmp_path / "latency.json"
    words = ["--steps", "3", "--cfg", "2", "--repeats", "1", "--json", str(out)]
    main(["latency", "--lora", str(student), *words])
    found = json.loads(out.read_text())
    assert found["fewer_calls"] == 3 and found["video"]["frames"] == 9
    assert "9 x 32 x 32, float32, batch 1, median of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "learned, words, guidance, calls",
    [
        (1.0, [], 1.0, 2),  # no guidance, or a scale that the network reads, as FLUX.1's
        (2.5, [], 2.5, 4),
        (2.5, ["--cfg", "1"], 1.0, 2),
        (None, [], 6.0, 4),  # the default of CogVideoXPipeline
    ],
)
def test_latency_times_the_teacher_with_the_guidance_that_its_student_learned(
    student, tmp_path, capsys, monkeypatch, learned, words, guidance, calls
):
    copy, scales = shutil.copytree(student, tmp_path / "lora"), []
    teacher = learned and {"guidance": learned, "negative_prompt": ""}
    facts = json.loads((copy / FACTS).read_text())
    (copy / FACTS).write_text(json.dumps(facts | {"teacher": teacher}))
    one = latency.Stage(1.0, 1.0, 1.0, None)

    def stages(*_, cfg, **__):
        scales.append(cfg)
        return dict.fromkeys(latency.STAGES, one)

    monkeypatch.setattr(latency, "stages", stages)
    monkeypatch.setattr(latency, "end_to_end", lambda *_, **__: one)
    out = tmp_path / "latency.json"
    main(["latency", "--lora", str(copy), "--steps", "2", "--json", str(out), *words])
    samplers = json.loads(out.read_text())["samplers"]
    assert scales == [guidance, 1.0] and samplers["teacher"]["network_calls"] == calls
    stated = "no guidance" if guidance == 1 else f"guidance {guidance:g}"
    assert f"teacher in 2 steps with {stated}\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, facts",
    [
        (["--negative", "bad", "--cfg", "1"], ["negative", "cfg=1"]),
        (["--cfg-2", "3", "--cfg", "1"], ["cfg_2=3", "cfg=1"]),
        (["--size", "49x480x721"], ["video.width=721"]),
        (["--guidance", "3"], ["--guidance=3", "CogVideoXPipeline"]),
    ],
    ids=lambda value: value[0],
)
def test_a_wrong_option_is_refused_before_a_teacher_is_downloaded(
    options, facts, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "tdmvid.sampling.student.load_teacher", lambda *_, **__: pytest.fail("loads")
    )
    (tmp_path / "p.txt").write_text("a red square\n")
    words = ["sample", "--model", "THUDM/CogVideoX-2b", "--prompts", str(tmp_path / "p.txt")]
    size = [] if "--size" in options else ["--size", "49x480x720"]
    with refused("error", *facts, error=SystemExit):
        main([*words, *size, *options, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_benchmark_of_videos_is_sampled_for_its_scorer(student, tmp_path, capsys):
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    (prompts / "7_numeracy.txt").write_text("two fish\nthree cats\n")
    words = ["--prompts", str(prompts), "--out", str(out), "--cache", str(tmp_path / "cache")]
    common = ["benchmark", *words, "--lora", str(student), "--benchmark"]
    main([*common, "t2v-compbench", "--limit", "1"])
    assert [path.name for path in (out / "numeracy").glob("*.mp4")] == ["0001.mp4"]
    assert f"wrote 1 files for the scorer of t2v-compbench to {out}" in capsys.readouterr().out
    (prompts / "metadata.jsonl").write_text('{"prompt": "a", "tag": "b"}\n')
    words[1] = str(prompts / "metadata.jsonl")
    with refused("--benchmark=geneval", "9 frames", error=SystemExit):
        main(["benchmark", *words, "--lora", str(student), "--benchmark", "geneval"])
