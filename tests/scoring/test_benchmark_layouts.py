"""Files of benchmarks are read, and files are named as their scorers expect."""

import json

import pytest
from refusals import refused

from tdmvid.scoring.benchmark_layouts import layout

GOOD = '{"prompt": "a bench", "tag": "single_object"}\n\n'


def annotations(*captions, **entries):
    """Return a COCO file with these captions of different images."""
    rows = [{"image_id": i, "id": i, "caption": one} for i, one in enumerate(captions)]
    return json.dumps({"annotations": [row | entries for row in rows]})


def files(found):
    return {shot.file: shot.prompt for shot in found.shots}


def test_hpd_v2_has_a_folder_for_every_style(tmp_path):
    (tmp_path / "anime.json").write_text(json.dumps(["a girl", "a boy"]))
    (tmp_path / "photo.json").write_text(json.dumps(["a dog"]))
    assert files(layout("hpdv2", tmp_path)) == {
        "anime/00000.jpg": "a girl",
        "anime/00001.jpg": "a boy",
        "photo/00000.jpg": "a dog",
    }


@pytest.mark.parametrize(
    "name, text",
    [
        ("d.json", '["a cube", "two, cats"]'),
        ("d.csv", 'Prompts,Category\na cube,Colors\n"two, cats",Counting\n'),
    ],
)
def test_drawbench_is_a_flat_folder(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert files(layout("drawbench", tmp_path / name)) == {
        "00000.jpg": "a cube",
        "00001.jpg": "two, cats",
    }


def test_coco_takes_one_caption_of_every_image(tmp_path):
    rows = [
        {"image_id": 42, "id": 9, "caption": "later"},
        {"image_id": 7, "id": 5, "caption": "a bus "},
        {"image_id": 42, "id": 3, "caption": "a dog"},
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": rows}))
    assert files(layout("coco", tmp_path / "captions.json")) == {
        "000000000007.png": "a bus",
        "000000000042.png": "a dog",
    }


def test_images_of_one_caption_have_noise_of_their_own(tmp_path):
    rows = [
        {"image_id": i, "id": i, "caption": caption}
        for i, caption in enumerate(["a dog", "a bus", "a dog ", "a dog"])
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": rows}))
    assert [shot.seed for shot in layout("coco", tmp_path / "captions.json").shots] == [0, 0, 1, 2]
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"tag": "counting", "prompt": "three cups"})
        + "\n"
        + json.dumps({"tag": "color", "prompt": "three cups"})
    )
    assert [shot.seed for shot in layout("geneval", tmp_path / "m.jsonl", seeds=2).shots] == [
        0,
        1,
        2,
        3,
    ]


def test_geneval_has_its_metadata_beside_the_samples(tmp_path):
    rows = [
        {
            "tag": "single_object",
            "prompt": "a photo of a bench",
            "include": [{"class": "bench", "count": 1}],
        },
        {"tag": "counting", "prompt": "three cups"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    found = layout("geneval", tmp_path / "m.jsonl", seeds=2)
    assert list(files(found)) == [
        "00000/samples/00000.png",
        "00000/samples/00001.png",
        "00001/samples/00000.png",
        "00001/samples/00001.png",
    ]
    assert [shot.seed for shot in found.shots] == [0, 1, 0, 1]
    assert [json.loads(found.texts[f"0000{i}/metadata.jsonl"]) for i in range(2)] == rows


def test_geneval_metadata_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "m.jsonl").write_text(GOOD, encoding="utf-8-sig")
    found = layout("geneval", tmp_path / "m.jsonl")
    assert files(found) == {"00000/samples/00000.png": "a bench"}
    assert found.texts == {"00000/metadata.jsonl": GOOD.strip() + "\n"}


def test_t2v_compbench_counts_its_videos_from_one(tmp_path):
    (tmp_path / "1_consistent_attr.txt").write_text("a blue car\na red dog\n")
    (tmp_path / "7_numeracy.txt").write_text("two fish\n")
    assert files(layout("t2v-compbench", tmp_path)) == {
        "consistent_attr/0001.mp4": "a blue car",
        "consistent_attr/0002.mp4": "a red dog",
        "numeracy/0001.mp4": "two fish",
    }


def test_a_published_prompt_keeps_every_character(tmp_path):
    """Also a control character of a wrong encoding: the list is not the user's to edit."""
    (tmp_path / "x.json").write_text(json.dumps(["a caf\xc3\x89\x80"]))
    assert files(layout("drawbench", tmp_path / "x.json")) == {"00000.jpg": "a caf\xc3\x89\x80"}


@pytest.mark.parametrize(
    "benchmark, name, text, facts",
    [
        ("imagenet", "x.txt", "a", ("'imagenet'", "hpdv2, drawbench")),
        ("geneval", "x.jsonl", '{"text": "a"}', ("x.jsonl, line 1", "tag")),
        ("geneval", "x.jsonl", GOOD + '{"prompt": ', ("x.jsonl, line 3", "JSON")),
        ("geneval", "x.jsonl", GOOD + '{"prompt": 7, "tag": ""}', ("x.jsonl, line 3", "7")),
        ("geneval", "x.jsonl", GOOD + '{"prompt": " ", "tag": ""}', ("x.jsonl, line 3", "' '")),
        ("geneval", "x.jsonl", GOOD + "[" * 5000, ("x.jsonl, line 3", "nested")),
        ("geneval", "x.jsonl", (GOOD + "\xe9").encode("latin-1"), ("x.jsonl, line 3", "0xe9")),
        ("geneval", "x.jsonl", GOOD.encode("utf-16"), ("x.jsonl, line 1", "UTF-8")),
        ("geneval", "x.jsonl", "\n", ("x.jsonl",)),
        ("coco", "x.json", '{"images": []}', ("x.json", "COCO")),
        ("coco", "x.json", "[]", ("x.json", "COCO")),
        ("coco", "x.json", annotations("a", 7), ("x.json, annotation 2", "7")),
        ("coco", "x.json", annotations("a", None), ("x.json, annotation 2", "None")),
        ("coco", "x.json", annotations("a", " "), ("x.json, annotation 2", "' '")),
        ("coco", "x.json", annotations("a", "a\0"), ("x.json, annotation 2", repr("\0"))),
        ("coco", "x.json", annotations("a", image_id=None), ("annotation 1", "image_id=None")),
        ("coco", "x.json", annotations("a", image_id="7"), ("annotation 1", "image_id='7'")),
        ("coco", "x.json", annotations("a", image_id=True), ("annotation 1", "image_id=True")),
        ("coco", "x.json", annotations("a", image_id=-1), ("annotation 1", "image_id=-1")),
        ("coco", "x.json", annotations("a", image_id=1.5), ("annotation 1", "image_id=1.5")),
        ("coco", "x.json", annotations("a", id="x"), ("annotation 1", "id='x'")),
        ("coco", "x.json", '{"annotations": [7]}', ("annotation 1", "7")),
        ("coco", "x.json", '{"annotations": ' + "[" * 5000, ("x.json", "nested")),
        ("drawbench", "x.json", '{"a": 1}', ("x.json",)),
        ("drawbench", "x.json", '["a", 7]', ("x.json, prompt 2", "7")),
        ("drawbench", "x.json", '["a", ""]', ("x.json, prompt 2", "''")),
        ("hpdv2", "x.json", "[]", ("x.json",)),
    ],
)
def test_other_files_are_refused(tmp_path, benchmark, name, text, facts):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(*facts):
        layout(benchmark, tmp_path / name)


def test_a_style_with_a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "\udcff.json").write_text('["a"]')
    with refused(tmp_path, repr("\udcff.json")):
        layout("hpdv2", tmp_path)


def test_more_seeds_than_a_scorer_takes_are_refused(tmp_path):
    with refused("seeds=2", "coco"):
        layout("coco", tmp_path, seeds=2)
    with refused("none.json"):
        layout("coco", tmp_path / "none.json")
