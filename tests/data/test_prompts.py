import csv
import json

import pytest
from refusals import refused

from tdmvid.data.prompts import PromptOrder, read_prompts

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
        ("a.jsonl, line 2", b'"a cat"\n{"prompt": " "}', ("prompt ' '",)),
        ("a.jsonl, line 1", b'{"text": "a", "id": 1}', ("'prompt'", "'text', 'id'")),
        ("a.jsonl, line 1", rb'"\ud83d"', ("surrogate",)),
        ("a.csv, line 1", b"text,id\na,1\n", ("'prompt'", "'text', 'id'")),
        ("a.csv, line 2", b"prompt\na cat, sits\na dog, lies\n", ("'a cat, sits'", "2", "1")),
        ("a.csv, line 4", b'prompt,id\n"two\nlines",1\n,2\n', ("prompt ''",)),
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


def test_a_null_or_absent_parquet_column_is_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["a cat", None])
    with refused("a.parquet, row 2"):
        read_prompts(tmp_path / "a.parquet")
    with refused("a.parquet", "'caption'", "'id', 'prompt'"):
        read_prompts(tmp_path / "a.parquet", column="caption")


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
