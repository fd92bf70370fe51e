"""Generated captions are varied, complete sentences, and the same on every machine."""

import hashlib
from collections import Counter

import pytest
from refusals import refused

from tdmvid.data.caption_words import SCENES
from tdmvid.data.captions import MOST, Generated, parse_name
from tdmvid.data.prompts import read_prompts

KINDS = ("images", "videos")


def captions(kind, count, seed=0):
    return list(Generated(kind, count, seed).captions())


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_many_and_no_two_are_equal(kind):
    found = captions(kind, 5000)
    assert len({caption.casefold() for caption in found}) == 5000
    assert all(10 <= len(caption) <= 200 for caption in found)
    assert all(caption == " ".join(caption.split()) and caption[0].isupper() for caption in found)


@pytest.mark.parametrize("kind", KINDS)
def test_they_show_every_subject_and_none_much_more_often(kind):
    text = Counter()
    for caption in captions(kind, 5000):
        for scene in SCENES:
            text.update(subject for subject in scene.subjects if f" {subject} " in f"{caption} ")
    subjects = {subject for scene in SCENES for subject in scene.subjects}
    assert subjects <= text.keys() and max(text.values()) < 200


@pytest.mark.parametrize(
    "kind, digest", [("images", "557775423e420c09"), ("videos", "3e090655b493752d")]
)
def test_they_are_the_same_on_every_machine(kind, digest):
    """Checkpoints identify prompts by a hash, so other words would make another run."""
    text = "\n".join(captions(kind, 1000))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_list_begins_with_a_shorter_one_and_another_seed_is_another_list(kind):
    assert captions(kind, 300)[:100] == captions(kind, 100)
    assert not set(captions(kind, 100, 1)) & set(captions(kind, 100))


def test_a_list_is_read_by_its_name():
    assert read_prompts("videos:20") == captions("videos", 20)
    assert read_prompts("images:20:7") == captions("images", 20, 7)
    assert read_prompts("videos") != read_prompts("videos:300")


@pytest.mark.parametrize("name", ["videos", "videos:", "videos:-1", "audio:3", "videos:3.5"])
def test_what_is_no_list_is_not_taken_for_one(name):
    assert parse_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["videos:5k", "videos:", "videos:-1", "video:50", "images:3:x", "videos:3.5", "Videos:9"],
)
def test_a_name_that_is_almost_that_of_a_list_is_refused_with_the_form(name):
    with refused(name, "videos:COUNT[:SEED]", "videos:5000"):
        read_prompts(name)


def test_an_unknown_name_is_refused_with_those_of_the_built_in_lists():
    with refused("vidoes", "images, shapes", "videos", ".txt", "OWNER/NAME"):
        read_prompts("vidoes")


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_a_list_that_is_too_long_or_empty_is_refused(count):
    with refused(f"videos:{count}"):
        read_prompts(f"videos:{count}")
