"""Each video of a list is made once, and depends only on its prompt, its seed and the student."""

import gc
import runpy
import sys
import weakref

import pytest
import torch
from refusals import refused

from tdmvid.backbones.stock import StockPipeline
from tdmvid.data.saved_work import MARKER
from tdmvid.data.video import read_video, write_video
from tdmvid.parallel.launch import World
from tdmvid.sampling import manifest
from tdmvid.sampling import sample as sampling
from tdmvid.sampling.manifest import read_manifest
from tdmvid.sampling.sample import Sampler, sample_videos
from tdmvid.sampling.shots import plan_shots
from tdmvid.sampling.student import load_for_sampling

PROMPTS = ["a red circle moves left", "a blue square", "a red square"]
ONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def written(monkeypatch):
    """Return the files whose videos were sampled, in order."""
    files, write = [], sampling._write
    monkeypatch.setattr(
        sampling,
        "_write",
        lambda out, shots, *rest: (
            files.extend(shot.file for shot in shots),
            write(out, shots, *rest),
        ),
    )
    return files


def videos(folder):
    return {path.name: read_video(path) for path in sorted(folder.glob("*.mp4"))}


def same(a, b):
    assert a.keys() == b.keys() and len(a) == 6
    for name in a:
        assert (
            a[name] - b[name]
        ).abs().mean() < 0.01  # rounding depends on the batch size, and the codec can amplify it


def test_neither_batch_nor_order_changes_a_video(make, tmp_path):
    make("plain")
    make("batched", batch=4)
    make("backwards", naming="prompt", prompts=PROMPTS[::-1], seeds=(1, 0))
    plain = videos(tmp_path / "plain")
    same(plain, videos(tmp_path / "batched"))
    same(
        {f"{PROMPTS[int(name[:5])]}-{name[-5]}.mp4": video for name, video in plain.items()},
        videos(tmp_path / "backwards"),
    )
    distances = (
        torch.pdist(torch.stack(list(plain.values())).flatten(1), p=1) / plain.popitem()[1].numel()
    )
    assert distances.min() > 0.1  # and the six videos differ


def test_nothing_is_sampled_twice(make, written, tmp_path):
    first = make("out", PROMPTS[:2])
    (tmp_path / "out" / first[0]["file"]).unlink()
    written.clear()
    manifest = make("out")
    assert written == [first[0]["file"], "00002_a-red-square-0.mp4", "00002_a-red-square-1.mp4"]
    assert [(e["prompt"], e["seed"]) for e in manifest] == [
        (prompt, seed) for prompt in PROMPTS for seed in (0, 1)
    ]
    assert read_manifest(tmp_path / "out") == manifest and {
        p.name for p in (tmp_path / "out").iterdir()
    } == {"manifest.jsonl", "sampling.json", *(entry["file"] for entry in manifest)}


def test_the_script_of_a_job_learns_that_a_sample_was_made(make, tmp_path, monkeypatch):
    make("out", PROMPTS[:1], (0,))
    monkeypatch.setenv(MARKER, str(tmp_path / "saved"))
    make("out", PROMPTS[:1], (0,))
    assert not (tmp_path / "saved").exists()  # nothing was new
    make("out", PROMPTS[:1], (0, 1))
    assert (tmp_path / "saved").exists()


def test_what_is_no_whole_sample_is_made_again(make, written, tmp_path):
    """Cases: empty or truncated files, another length or size, and a link to a file elsewhere."""
    files = [entry["file"] for entry in make("out")]
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere.mp4"
    whole = (out / files[0]).read_bytes()
    (out / files[0]).write_bytes(b"")
    (out / files[1]).write_bytes(whole[: len(whole) * 3 // 4])
    write_video(out / files[2], torch.zeros(3, 8, 32, 32), fps=8)
    write_video(out / files[3], torch.zeros(3, 9, 32, 64), fps=8)
    elsewhere.write_bytes(whole)
    (out / files[4]).unlink()
    (out / files[4]).symlink_to(elsewhere)
    written.clear()
    make("out")
    assert written == files[:5] and not (out / files[4]).is_symlink()
    assert elsewhere.read_bytes() == whole


def test_the_manifest_and_one_line_name_the_prompts_that_are_cut(make, tmp_path, capsys):
    """The tiny pipeline reads 12 tokens: 11 words and the end token."""
    long, fits = " ".join(["red"] * 12), " ".join(["red"] * 11)
    make("out", [fits, long], (0, 1))
    assert [entry.get("cut_to_tokens") for entry in read_manifest(tmp_path / "out")] == [
        None,
        None,
        12,
        12,
    ]
    said = capsys.readouterr().err
    assert said.count("12 tokens") == 1 and "1 of 2 prompts" in said and "first prompt 2:" in said


def test_a_manifest_with_lines_that_are_no_entries_is_read(make, written, tmp_path):
    entries = make("out", PROMPTS[:1])
    with (tmp_path / "out" / "manifest.jsonl").open("a") as file:
        file.write('[1]\n{"file": 3}\n"a"\n' + "[" * 100_000 + '\n{"file": "../../x.mp4"}\n')
    written.clear()
    assert make("out", PROMPTS[:1]) == entries and not written


def test_a_killed_run_goes_on_where_it_was(make, written, backbone, tmp_path, monkeypatch):
    make("whole")
    decode, calls = type(backbone).decode, []

    def dying(self, latents):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return decode(self, latents)

    monkeypatch.setattr(type(backbone), "decode", dying)
    written.clear()
    with pytest.raises(KeyboardInterrupt):
        make("out", batch=2)
    monkeypatch.undo()
    with (tmp_path / "out" / ".0.manifest.jsonl").open("a") as file:
        file.write('{"prompt": "a cut li')
    with (tmp_path / "out" / ".0.manifest.jsonl").open("ab") as file:
        file.write("é".encode()[:1])  # inside a character
    make("out", batch=2)
    same(videos(tmp_path / "whole"), videos(tmp_path / "out"))
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 6 and not list(
        (tmp_path / "out").glob(".*")
    )


def test_a_prompt_may_hold_any_character(make, written):
    """Some Unicode line separators do not end a line of a file. Web captions contain them."""
    odd = ["a red\u2028circle", "a blue\x85square"]
    assert [entry["prompt"] for entry in make("out", odd, (0,))] == odd
    written.clear()
    make("out", odd, (0,))
    assert not written


def test_a_line_that_another_job_s_gathering_lost_is_written_again(make, tmp_path, monkeypatch):
    """Jobs with other seeds may share a folder. Each merges manifests at its start and end."""
    write = sampling._write

    def robbed(out, shots, *rest):
        write(out, shots, *rest)
        (out / ".0.manifest.jsonl").unlink()  # merged just before the line was appended

    monkeypatch.setattr(sampling, "_write", robbed)
    manifest = make("out", PROMPTS[:2], (0,))
    assert read_manifest(tmp_path / "out") == manifest and len(manifest) == 2


def test_two_jobs_may_gather_one_folder_at_once(tmp_path, monkeypatch):
    """Both read and remove the same parts."""
    (tmp_path / ".0.manifest.jsonl").write_text('{"file": "a.mp4"}\n')
    write = manifest.write_text

    def with_another(path, text):
        write(path, text)
        (tmp_path / ".0.manifest.jsonl").unlink(missing_ok=True)  # the other job removed it first

    monkeypatch.setattr(manifest, "write_text", with_another)
    monkeypatch.setattr(
        type(tmp_path), "glob", lambda folder, pattern: iter([tmp_path / ".0.manifest.jsonl"])
    )  # as listed before
    manifest.gather_manifest(tmp_path)
    manifest.gather_manifest(tmp_path, [{"file": "b.mp4"}])
    assert [entry["file"] for entry in read_manifest(tmp_path)] == ["a.mp4", "b.mp4"]


def test_the_network_is_not_loaded_again(make, student, backbone, monkeypatch):
    """With eight ranks, host memory would hold it eight times, and the device twice."""
    monkeypatch.setattr(
        type(backbone.network), "from_pretrained", lambda *_, **__: pytest.fail("loaded again")
    )
    for sampler in (Sampler(student), Sampler(steps=2)):
        assert make(f"of {sampler.student}", PROMPTS[:1], (0,), sampler=sampler)


def test_a_teacher_s_videos_serve_another_student(make, written, tmp_path):
    """They are linked into the next evaluation's folder, because sampling took days."""
    make("first/teacher")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "teacher").symlink_to(tmp_path / "first" / "teacher")
    written.clear()
    assert len(make("second/teacher")) == 6 and not written


def test_no_weights_are_kept_once_all_is_sampled(student, tmp_path):
    """Scoring needs the device for hours without triggering garbage collection here."""
    gc.disable()
    try:
        backbone = load_for_sampling(ONE, student=student)
        shots = plan_shots(PROMPTS[:1], (0,), frames=9)
        sample_videos(
            tmp_path / "out",
            shots,
            backbone=backbone,
            sampler=Sampler(student),
            world=ONE,
            cache=tmp_path / "cache",
        )
        weights = [weakref.ref(p) for p in backbone.network.parameters()]
        del backbone
        assert len(weights) > 10 and not any(weight() is not None for weight in weights)
    finally:
        gc.enable()


def test_what_cannot_be_written_is_named(make, backbone, monkeypatch):
    monkeypatch.setattr(
        type(backbone),
        "decode",
        lambda self, latents: torch.full((len(latents), 3, 9, 32, 32), torch.nan),
    )
    with refused("00000_a-red-circle-moves-left-0.mp4", "seed 0", "'a red circle moves left'"):
        make("out")  # already float32


def test_the_text_encoder_is_gone_before_the_denoiser_runs(make, backbone, monkeypatch):
    held = []
    latents = StockPipeline.latents
    monkeypatch.setattr(
        StockPipeline,
        "latents",
        lambda self, pipeline, *a, **k: (
            held.append((self.backbone._text, pipeline.text_encoder)),
            latents(self, pipeline, *a, **k),
        )[1],
    )
    make("out", PROMPTS[:1], (0,))
    assert held == [(None, None)]


def test_the_program_samples_from_a_bundle_alone_and_refuses_in_one_line(
    student, tmp_path, monkeypatch, capsys
):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    common = [
        "--lora",
        student,
        "--prompts",
        tmp_path / "prompts.txt",
        "--out",
        tmp_path / "out",
        "--cache",
        tmp_path / "cache",
    ]

    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, (*common, *arguments))])
        runpy.run_path("launch/sample.py", run_name="__main__")

    program("--seeds", "3,4", "--batch", "4", "--names", "prompt")
    assert "4 samples and manifest.jsonl are in" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.mp4")} == {
        f"{prompt}-{seed}.mp4" for prompt in PROMPTS[:2] for seed in (3, 4)
    }
    for wrong, fact in (
        (["--steps", "-1"], "--steps=-1"),
        (["--cfg", "nan"], "--cfg=nan"),
        (["--batch", "0"], "batch=0"),
    ):
        with refused("error", fact, error=SystemExit):
            program(*wrong)
