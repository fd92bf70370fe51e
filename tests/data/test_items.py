"""Items of image-to-video models: pairing images with prompts, and fitting images to the size."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.config import ClipSize, LogConfig, PromptConfig, RealConfig
from tdmvid.data.captioned import find_source
from tdmvid.data.items import (
    Item,
    file_digest,
    find_images,
    gallery_items,
    pair_items,
    read_images,
    read_items,
)
from tdmvid.data.latents import RealLatents
from tdmvid.data.media_folders import media_files
from tdmvid.data.prompts import read_prompts, read_training_prompts
from tdmvid.data.video import write_image, write_video

PROMPTS = ["a cat", "a dog, asleep"]


def flat(value, height=8, width=8):
    return torch.full((3, height, width), value)


@pytest.fixture
def images(tmp_path):
    """Two image files in a subfolder of the table's folder."""
    for index, value in enumerate((-1.0, 1.0)):
        write_image(tmp_path / "stills" / f"{index}.png", flat(value))
    return [tmp_path / "stills" / f"{index}.png" for index in range(2)]


def write_csv(path, rows):
    lines = [f'stills/{index}.png,"{prompt}"' for index, prompt in enumerate(rows)]
    path.write_text("\n".join(["image,prompt", *lines]))


def write_jsonl(path, rows):
    lines = [{"prompt": p, "image": f"stills/{index}.png"} for index, p in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("name, write", [("a.csv", write_csv), ("a.jsonl", write_jsonl)])
def test_a_table_gives_each_prompt_the_image_of_its_row(tmp_path, images, name, write):
    write(tmp_path / name, PROMPTS)
    config = PromptConfig(path=str(tmp_path / name))
    assert read_items(config, images=True) == list(map(Item, PROMPTS, images))
    assert read_items(config, images=False) == list(map(Item, PROMPTS))
    with refused("prompts.images='made'", "takes no image"):
        read_items(replace(config, images="made"), images=False)


def test_a_row_without_an_image_is_named_and_may_be_skipped_with_its_prompt(tmp_path, images):
    path = tmp_path / "a.csv"
    path.write_text("image,prompt\n,a cat\nstills/1.png,a dog")
    with refused(path, "line 2"):
        read_items(PromptConfig(path=str(path)), images=True)
    found = read_items(PromptConfig(path=str(path), skip_empty=True), images=True)
    assert found == [Item("a dog", images[1])]


def test_an_image_that_is_not_there_is_named_with_its_line(tmp_path, images):
    path = tmp_path / "a.csv"
    path.write_text("image,prompt\nstills/0.png,a cat\nstills/7.png,a dog")
    with refused(path, "line 3", "'stills/7.png'"):
        read_items(PromptConfig(path=str(path)), images=True)


def test_prompts_without_images_are_refused_with_what_would_do(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a cat")
    with refused("prompts.path=", "prompts.images", "'image'"):
        read_items(PromptConfig(path=str(path)), images=True)


def test_images_made_of_the_prompts_are_found_by_their_prompts(tmp_path, images):
    prompts, folder = tmp_path / "a.txt", tmp_path / "stills"
    prompts.write_text("\n".join(PROMPTS))
    config = PromptConfig(path=str(prompts), images=str(folder))
    with refused("prompts.images=", "manifest.jsonl", "tdmvid sample"):
        read_items(config, images=True)
    entries = [{"prompt": PROMPTS[1], "file": "1.png"}, {"prompt": PROMPTS[0], "file": "0.png"}]
    (folder / "manifest.jsonl").write_text(json.dumps(entries[0]))
    with refused("prompts.images=", "1 of 2 prompts", "'a cat'"):
        read_items(config, images=True)
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    assert read_items(config, images=True) == list(map(Item, PROMPTS, images))


def test_one_image_serves_all_prompts_and_another_number_does_not(images):
    def pair(prompts, files, takes=True):
        return pair_items(prompts, files, takes_images=takes, setting="log.sample_images")

    assert pair(PROMPTS, images[:1]) == [Item(prompt, images[0]) for prompt in PROMPTS]
    assert pair(PROMPTS, images) == list(map(Item, PROMPTS, images))
    with refused("log.sample_images", "2 images", "3 prompts"):
        pair([*PROMPTS, "a bird"], images)
    with refused("log.sample_images", "0 images"):
        pair(PROMPTS, [])
    with refused("log.sample_images="):
        pair(PROMPTS, images, takes=False)


def test_samples_of_prompts_alone_start_from_the_first_training_images(images):
    items = list(map(Item, PROMPTS, images))
    log = LogConfig(sample_prompts=("one", "two", "three"))
    found = gallery_items(log, items, takes_images=True)
    assert [item.image for item in found] == [images[0], images[1], images[0]]
    assert gallery_items(LogConfig(sample_count=1), items, takes_images=True) == items[:1]
    with refused("log.sample_images"):
        LogConfig(sample_images=("a.png",))


def test_an_image_covers_the_clip_and_is_cut_to_its_middle(tmp_path):
    """20 x 40 pixels are fitted to 16 x 16: a quarter is cut off on the left and on the right."""
    wide = torch.cat([flat(-1.0, 20, 10), flat(0.5, 20, 20), flat(-1.0, 20, 10)], 2)
    write_image(tmp_path / "wide.png", wide)
    found = read_images([tmp_path / "wide.png"], ClipSize(9, 16, 16))
    assert found.shape == (1, 3, 16, 16)
    assert (found[:, :, :, 1:-1] - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("kind", [SyntaxError, RuntimeError])
def test_an_image_that_a_decoder_gives_up_on_is_named(tmp_path, monkeypatch, kind):
    write_image(tmp_path / "a.png", flat(0.5, 8, 8))

    def broken(file):
        raise kind("Failed to decode frame 0")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with refused(tmp_path / "a.png", "not a readable image"):
        read_images([tmp_path / "a.png"], ClipSize(1, 8, 8))


def test_a_video_gives_its_first_frame(tmp_path):
    video = torch.cat(
        [flat(0.5, 16, 16)[:, None], flat(-1.0, 16, 16)[:, None].expand(3, 8, 16, 16)], 1
    )
    write_video(tmp_path / "a.mp4", video, fps=8)
    found = read_images([tmp_path / "a.mp4"], ClipSize(9, 16, 16))
    assert (found - 0.5).abs().max() < 0.1


def test_images_are_known_by_their_content(images, tmp_path):
    (tmp_path / "copy.png").write_bytes(images[0].read_bytes())
    assert file_digest(tmp_path / "copy.png") == file_digest(images[0]) != file_digest(images[1])
    assert find_images(tmp_path / "stills", ["a", "b"], setting="images") == images
    assert find_images(images[1], ["a", "b"], setting="images") == [images[1]]


def test_images_that_were_sampled_from_the_prompts_are_found_by_prompt(images, tmp_path):
    stills = tmp_path / "stills"
    rows = [{"prompt": prompt, "file": file.name} for prompt, file in zip("ab", images)]
    (stills / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_images(stills, ["b", "a", "b"], setting="images") == [
        images[at] for at in (1, 0, 1)
    ]
    assert find_images(stills, ["of other prompts", "too"], setting="images") == images
    with refused(f"images='{stills}'", "1 of 2 prompts", "'of other prompts'"):
        find_images(stills, ["b", "of other prompts"], setting="images")
    for number in (2, 10, 1):
        write_image(tmp_path / "numbered" / f"{number}.png", flat(0.1 * number, 16, 16))
    numbered = find_images(tmp_path / "numbered", ["a", "b", "c"], setting="images")
    assert [file.stem for file in numbered] == ["1", "2", "10"]
    with refused("--images:", tmp_path / "none"):
        find_images(tmp_path / "none", ["a"], setting="--images")


def test_a_folder_of_clips_gives_captions_and_first_frames(tmp_path):
    for name, value in (("a", 0.5), ("b", -0.5)):
        video = flat(value, 16, 16)[:, None].expand(3, 3, 16, 16)
        write_video(tmp_path / "clips" / f"{name}.mp4", video, fps=8)
        (tmp_path / "clips" / f"{name}.txt").write_text(f"clip {name}\n")
    config = PromptConfig(path=str(tmp_path / "clips"))
    found = read_items(config, images=True)
    assert found == [Item(f"clip {name}", tmp_path / "clips" / f"{name}.mp4") for name in "ab"]
    assert read_training_prompts(config) == [item.prompt for item in found]
    (tmp_path / "clips" / "b.txt").write_text(" ")
    with refused(tmp_path / "clips", "1 of 2", "'b.mp4'", "'b.txt' is empty"):
        read_items(config, images=True)


def test_a_video_without_a_caption_is_named_before_its_caption(tmp_path):
    write_image(tmp_path / "docs" / "a.png", flat(0.0))
    with refused(tmp_path, "1 of 1", "'docs/a.png', whose 'a.txt' is missing"):
        read_prompts(tmp_path)


def test_a_folder_without_videos_and_images_is_told_so_without_a_list_of_types(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for command in (["prompts"], ["score", "samples"]):
        with refused("error", "no video or image", "'a.json'", error=SystemExit) as caught:
            main([*command, str(tmp_path)])
        assert ".mp4" not in str(caught.value)
        with refused("error", tmp_path / "none", error=SystemExit) as caught:
            main([*command, str(tmp_path / "none")])
        assert ".mp4" not in str(caught.value)


@pytest.mark.parametrize("name", ["videos", "shapes"])
def test_a_folder_with_captions_wins_over_a_built_in_list_and_one_without_does_not(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    built_in = read_prompts(name)
    write_image(tmp_path / name / "sub" / "a.png", flat(0.0))
    (tmp_path / name / "sub" / "notes.txt").write_text("of no image")
    assert read_prompts(name) == built_in
    assert find_source(f"{name}:50") == Path(f"{name}:50")
    (tmp_path / name / "sub" / "a.txt").write_text("a cat")
    assert read_prompts(name) == ["a cat"]
    assert read_items(PromptConfig(path=name), images=True) == [
        Item("a cat", Path(name, "sub", "a.png"))
    ]


@pytest.mark.parametrize(
    "caption, facts",
    [
        ("\u200b".encode(), ("1 of 2", "'b.txt'")),
        (b"\xef\xbb\xbf \n", ("1 of 2", "'b.txt'")),
        (b"a \x1b[0m cat", ("b.txt", repr("\x1b"))),
        ("a cat".encode("utf-16-le"), ("b.txt", "line 1", "NUL", "UTF-8")),
        (b"a cat\nun \xe9l\xe9phant", ("b.txt", "line 2", "0xe9", "UTF-8")),
    ],
)
@pytest.mark.parametrize("images", [False, True])
def test_captions_are_checked_with_and_without_their_images(tmp_path, caption, facts, images):
    for name in "ab":
        write_image(tmp_path / f"{name}.png", flat(0.0))
        (tmp_path / f"{name}.txt").write_text("a cat")
    config = PromptConfig(path=str(tmp_path))
    assert [item.prompt for item in read_items(config, images=images)] == ["a cat"] * 2
    (tmp_path / "b.txt").write_bytes(caption)
    with refused(tmp_path, *facts):
        read_items(config, images=images)


@pytest.mark.parametrize("images", [False, True])
def test_no_source_of_prompts_is_not_the_working_folder(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", flat(0.0))
    (tmp_path / "a.txt").write_text("a cat")
    with refused("prompts.path", "empty"):
        read_items(PromptConfig(), images=images)


def test_links_that_lead_nowhere_are_named(tmp_path):
    """A disk that is not mounted would otherwise shrink the data in silence."""
    write_image(tmp_path / "a.png", flat(0.5, 16, 16))
    (tmp_path / "notes.txt").symlink_to(tmp_path / "none")
    assert media_files(tmp_path, {".png"}) == [tmp_path / "a.png"]
    (tmp_path / "b.png").symlink_to(tmp_path / "unmounted.png")
    with refused(str(tmp_path), "1 file: 'b.png'", "links"):
        media_files(tmp_path, {".png"})


@pytest.fixture
def odd(tmp_path):
    """A folder with an image and a caption, whose names are not UTF-8."""
    write_image(tmp_path / "clips" / "a.png", flat(0.0))
    write_image(tmp_path / "clips" / "b.png", flat(0.0))
    for name in "ab":
        (tmp_path / "clips" / f"{name}.txt").write_text("a cat")
    for suffix in ("png", "txt"):
        os.rename(tmp_path / "clips" / f"b.{suffix}", tmp_path / "clips" / f"\udcff.{suffix}")
    return tmp_path / "clips"


def test_file_names_that_are_not_utf8_are_counted_and_shown(odd, tmp_path):
    facts = (str(odd), "1 of 2", repr("\udcff.png"))
    for images in (False, True):
        with refused(*facts):
            read_items(PromptConfig(path=str(odd)), images=images)
    with refused(*facts):
        find_images(odd, ["a"], setting="images")
    with refused(*facts):
        RealLatents(RealConfig(path=str(odd), cache=str(tmp_path / "cache")), "vae")
    (odd / "\udcff.png").unlink()
    assert read_items(PromptConfig(path=str(odd)), images=True) == [Item("a cat", odd / "a.png")]


def test_a_working_folder_that_is_not_utf8_holds_clips(odd, tmp_path, monkeypatch):
    (odd / "\udcff.png").unlink()
    os.rename(odd, tmp_path / "\udcff")
    monkeypatch.chdir(tmp_path / "\udcff")
    real = RealLatents(RealConfig(path=".", cache=str(tmp_path / "cache")), "vae")
    assert real.missing() == 1


@pytest.mark.parametrize(
    "path, setting, images",
    [
        ("a.txt", {"column": "text"}, False),
        ("a.txt", {"skip_empty": True}, False),
        ("videos:3", {"column": "text"}, False),
        ("shapes", {"image_column": "frame"}, False),
        ("a.jsonl", {"image_column": "frame"}, False),
        ("a.jsonl", {"image_column": "frame", "images": "made"}, True),
    ],
)
def test_a_setting_without_effect_on_the_source_is_refused(
    tmp_path, monkeypatch, path, setting, images
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a cat\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat", "text": "a dog"}\n')
    name, value = next(iter(setting.items()))
    with refused(f"prompts.{name}={value!r}".replace("'True'", "True"), "no effect"):
        read_items(PromptConfig(path=path, **setting), images=images)


def test_a_table_may_name_its_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a dog"}\n')
    config = PromptConfig(path=str(tmp_path / "a.jsonl"), column="text", skip_empty=True)
    assert read_items(config, images=False) == [Item("a dog")]
