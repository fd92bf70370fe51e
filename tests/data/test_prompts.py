import csv
import json

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.config import ImageConfig, PromptConfig
from tdmvid.data.items import read_items
from tdmvid.data.prompts import PromptOrder, read_prompts, read_training_prompts
from tdmvid.scoring.benchmark_layouts import layout
from tdmvid.scoring.image_run import shots_of

PROMPTS = [
    "a red circle, moving left",
    'a sign saying "NA"',
    "007",
    "NA",
    "ein Kätzchen\u2028läuft",
    "007",
]


def write_txt(path, prompts):
    path.write_text("\ufeff" + "\r\n".join(prompts) + "\n\n", encoding="utf-8", newline="")


def write_strings(path, prompts):
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def write_objects(path, prompts):
    rows = (
        json.dumps({"id": i, "prompt": prompt}, ensure_ascii=False)
        for i, prompt in enumerate(prompts)
    )
    path.write_text("\n\n".join(rows), encoding="utf-8")


def write_csv(path, prompts):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "prompt"], *enumerate(prompts)])


def write_parquet(path, prompts):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"id": range(len(prompts)), "prompt": prompts}), path)


@pytest.mark.parametrize(
    "name, write",
    [
        ("a.txt", write_txt),
        ("a.jsonl", write_strings),
        ("b.jsonl", write_objects),
        ("a.csv", write_csv),
        ("a[1].PARQUET", write_parquet),
    ],
)
def test_every_format_gives_the_same_list(tmp_path, name, write):
    write(tmp_path / name, PROMPTS)
    assert read_prompts(tmp_path / name) == PROMPTS


@pytest.mark.parametrize(
    "place, content, facts",
    [
        ("a.jsonl, line 3", b'"a cat"\n\n{"prompt": "a dog"\n', ("JSON",)),
        ("a.jsonl, line 2", b'"a cat"\n7\n', ("prompt 7",)),
        ("a.jsonl, line 2", b'"a cat"\n' + b"7" * 5000, ("long",)),
        ("a.jsonl, line 2", b'"a cat"\n{"prompt": " "}', ("1 of 2", "skip_empty")),
        ("a.jsonl, line 1", b'{"text": "a", "id": 1}', ("'prompt'", "'text', 'id'")),
        ("a.jsonl, line 1", rb'"\ud83d"', ("surrogate",)),
        ("a.csv, line 1", b"text,id\na,1\n", ("'prompt'", "'text', 'id'")),
        ("a.csv, line 2", b"prompt\na cat, sits\na dog, lies\n", ("'a cat, sits'", "2", "1")),
        ("a.csv, line 4", b'prompt,id\n"two\nlines",1\n,2\n', ("1 of 2",)),
        ("a.csv, line 2", b"prompt,id\n\xe2\x80\x8b,1\na,2\n , 3\n", ("2 of 3", "2, 4")),
        ("a.csv, line 2", b"prompt,id\na cat\n", ("'a cat'", "1", "2", "comma")),
        ("a.csv, line 1", b"prompt,prompt\na,b\n", ("two columns", "'prompt'")),
        ("a.csv, line 1", b"prompt;id\na cat;1\n", ("'prompt;id'", "';'")),
        ("a.csv, line 3", b'prompt\na\n"b' + b"c" * 200_000, ("131072", "quote")),
        ("a.txt, line 1", "a cat\na dog\n".encode("utf-16-le"), ("NUL", "UTF-16", "UTF-8")),
        ("a.csv, line 1", "prompt\na dog\n".encode("utf-16-be"), ("NUL", "UTF-8")),
        ("a.jsonl, line 2", rb'"a"' + b"\n" + rb'"a\u0000b"', (repr("a\0b"), repr("\0"))),
        ("a.txt, line 2", b"a\rb\x1b[0m\n", (repr("\x1b"),)),
        ("a.txt, line 3", b"a\rb\r\xff", ("0xff",)),
        ("a.csv, line 3", b'prompt\na\n"b\n', ("CSV",)),
        ("a.txt, line 2", b"a cat\nun \xe9l\xe9phant\n", ("0xe9", "UTF-8")),
        ("a.txt", b"\n \n", ()),
        ("a.csv", b"", ()),
        ("a.parquet", b"PAR1", ("Parquet",)),
        ("a.yaml", b"", ("'.yaml'", ".txt, .jsonl, .csv, .parquet")),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, place, content, facts):
    path = tmp_path / place.split(",")[0]
    path.write_bytes(content)
    with refused(tmp_path / place, *facts):
        read_prompts(path)


@pytest.mark.parametrize("depth", [30, 300, *range(900, 1000, 5), 5000, 200_000])
@pytest.mark.parametrize("line", ["{}", '{{"prompt": {}}}', '{{"x": {}}}'])
def test_deep_nesting_is_refused_with_its_line(tmp_path, depth, line):
    path = tmp_path / "a.jsonl"
    path.write_text('"a cat"\n' + line.format("[" * depth + "]" * depth))
    with refused(path, "line 2"):
        read_prompts(path)


def test_a_byte_order_mark_of_a_joined_file_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa cat\n\ufeffa dog\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt") == ["a cat", "a dog"]


def test_a_csv_may_have_spaces_after_its_commas(tmp_path):
    (tmp_path / "a.csv").write_text('id, prompt\n1, "a cat, sitting"\n2, a dog\n')
    assert read_prompts(tmp_path / "a.csv") == ["a cat, sitting", "a dog"]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n", "\r\r\n"])
def test_every_kind_of_line_end_ends_a_line(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(end.join(["a cat", "", "a dog", "a bird"]).encode())
    assert read_prompts(tmp_path / "a.txt") == ["a cat", "a dog", "a bird"]
    (tmp_path / "a.csv").write_bytes(end.join(["id,prompt", "1,a cat", "2,a dog"]).encode())
    assert read_prompts(tmp_path / "a.csv") == ["a cat", "a dog"]
    (tmp_path / "a.jsonl").write_bytes(end.join(['"a cat"', '{"prompt": "a dog"}']).encode())
    assert read_prompts(tmp_path / "a.jsonl") == ["a cat", "a dog"]


def test_all_empty_captions_are_counted_at_once_and_can_be_skipped(tmp_path):
    path = tmp_path / "a.csv"
    rows = [f"{n}," + ("" if n in (3, 4, 5, 900) else f"scene {n}") for n in range(1000)]
    path.write_text("\n".join(["id,prompt", *rows]))
    with refused("a.csv", "line 5", "4 of 1,000", "5-7, 902", "prompts.skip_empty=true"):
        read_prompts(path)
    config = PromptConfig(path=str(path), skip_empty=True, limit=6)
    assert read_training_prompts(config) == [f"scene {n}" for n in (0, 1, 2, 6, 7, 8)]
    words = ["prompts", str(path), "--skip-empty", "--limit", "6", "--out", str(tmp_path / "b.txt")]
    main(words)
    assert read_prompts(tmp_path / "b.txt") == read_training_prompts(config)
    path.write_text("id,prompt\n1,\n")
    with refused("a.csv"):
        read_prompts(path, skip_empty=True)


@pytest.mark.parametrize("blank", ["", " \t", "\u200b", "\ufeff \u2060"])
def test_lines_without_visible_characters_are_no_prompts(tmp_path, blank, capsys):
    path = tmp_path / "a.txt"
    path.write_text(f"a cat\n{blank}\na dog\n", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "a dog"]
    main(["prompts", str(path)])
    assert capsys.readouterr().out == "a cat\na dog\n"
    path.write_text(f"{blank}\n", encoding="utf-8")
    with refused(path, "no prompts"):
        read_prompts(path)


@pytest.mark.parametrize("empty", ["null", "NaN", '""', '" "', r'"\u200b"', r'"\ufeff"'])
def test_whatever_a_table_has_for_no_prompt_is_empty(tmp_path, empty):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": {empty}}}\n"a cat"\n')
    assert read_prompts(tmp_path / "a.jsonl", skip_empty=True) == ["a cat"]
    with refused("a.jsonl", "line 1", "1 of 2"):
        read_prompts(tmp_path / "a.jsonl")


def test_a_null_or_absent_parquet_column_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["a cat", None])
    with refused("a.parquet, row 2"):
        read_prompts(tmp_path / "a.parquet")
    with refused("a.parquet", "'caption'", "'id', 'prompt'"):
        read_prompts(tmp_path / "a.parquet", column="caption")


def test_a_missing_column_is_answered_with_what_sets_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a b,id\nx,1\n")
    with refused("error", "'prompt'", "--column 'a b'", "prompts.column='a b'", error=SystemExit):
        main(["prompts", str(path)])
    with refused("'image'", "--image-column id", "prompts.image_column=id"):
        path.write_text("id,prompt\n1,x\n")
        read_items(PromptConfig(path=str(path)), images=True)
    with refused("'Prompts'", "rename") as caught:  # DrawBench's, which no option sets
        layout("drawbench", path, seeds=1)
    assert "--column" not in str(caught.value)
    with refused("'text'", "--set column=id"):
        shots_of(ImageConfig(prompts=str(path), column="text"))


def test_a_missing_file_is_named(tmp_path):
    with refused("prompts.txt", error=FileNotFoundError):
        read_prompts(tmp_path / "prompts.txt")


def test_every_epoch_has_each_prompt_once_in_its_own_order():
    order = PromptOrder(12, seed=3)
    epochs = [
        [i for step in range(3 * e, 3 * e + 3) for i in order.indices(step, 4, 0, 1)]
        for e in range(4)
    ]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert PromptOrder(12, seed=4).indices(0, 12, 0, 1) not in epochs


@pytest.mark.parametrize("count", [1, 7, 100])
def test_the_micro_batches_of_a_step_partition_the_one_large_batch(count):
    order = PromptOrder(count, seed=0)
    for step in (0, 1, 50):
        parts = [order.indices(step, 3, micro, 4) for micro in range(4)]
        together = [index for part in parts for index in part]
        assert together == PromptOrder(count, seed=0).indices(step, 12, 0, 1)


def test_the_order_needs_no_history():
    walked = PromptOrder(10, seed=1)
    history = [walked.indices(step, 3, 1, 2) for step in range(40)]
    assert [
        PromptOrder(10, seed=1).indices(step, 3, 1, 2) for step in reversed(range(40))
    ] == history[::-1]
