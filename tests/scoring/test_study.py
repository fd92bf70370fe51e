"""A blind study: pairs, the page in a real browser, and the count."""

import json

import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.data.items import file_digest
from tdmvid.data.media import embed
from tdmvid.data.video import write_image
from tdmvid.scoring.study import Question, pair_samples, read_votes, tally, write_study

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="the study page was not opened: no Chromium here (apt-get install chromium)",
)
# What a busy browser's localStorage is where a file's script runs before its page is registered.
FORGETFUL = """Object.defineProperty(window, 'localStorage', {
    value: {getItem: () => null, setItem() {}, removeItem() {}},
})"""
PROMPT_IS_DARKEST = """(() => {
    const dark = e => getComputedStyle(e).color.match(/\\d+/g).reduce((sum, x) => sum + +x, 0);
    const prompt = document.querySelector('#prompt');
    const others = [...document.querySelectorAll('main *')].filter(e => e !== prompt);
    return others.every(e => dark(e) > dark(prompt));
})()"""


def write_png(path):
    write_image(path, torch.zeros(3, 8, 8))
    return path


def ballot(key, person, **votes):
    return f"{person}.json", {
        "study": key["study"],
        "person": person,
        "votes": {pair[1:]: choice for pair, choice in votes.items()},
    }


def test_only_pairs_of_one_prompt_and_seed_are_asked(folders):
    lines = (folders[1] / "manifest.jsonl").read_text().split("\n")
    (folders[1] / "manifest.jsonl").write_text(
        "\n".join([lines[0].replace("ring", "cross"), lines[2]])
    )
    assert [question.prompt for question in pair_samples(*folders)] == ["a still lake"]
    others = [json.dumps(json.loads(line) | {"seed": 1}) for line in lines if line]
    (folders[1] / "manifest.jsonl").write_text("\n".join(others))
    with refused(*folders, "seed"):
        pair_samples(*folders)
    (folders[1] / "manifest.jsonl").write_text("")
    with refused():
        pair_samples(*folders)
    with refused(folders[0]):
        pair_samples(folders[0], folders[0])


def test_pairs_need_no_equal_file_names(folders):
    """`tdmvid sample --names` and the order of the prompts only decide what files are called."""
    text = (folders[1] / "manifest.jsonl").read_text()
    for file in folders[1].glob("0-0.*"):
        text = text.replace(file.name, f"ring{file.suffix}")
        file.rename(file.with_stem("ring"))
    (folders[1] / "manifest.jsonl").write_text("\n".join(reversed(text.strip().split("\n"))))
    first = pair_samples(*folders)[0]
    assert [path.stem for path in first.sides] == [
        "0-0",
        "ring",
    ] and first.prompt == "a red <b>ring</b>"


def test_a_copy_under_another_name_is_not_asked_twice(folders):
    for folder in folders:
        path = folder / "manifest.jsonl"
        first, *others = path.read_text().strip().split("\n")
        copy = json.loads(first) | {"file": "copy-0.png"}
        (folder / "copy-0.png").write_bytes((folder / "0-0.png").read_bytes())
        path.write_text("\n".join([first, *others, json.dumps(copy)]))
    others = ["1-0.png", "2-0.mp4"]
    assert [one.file for one in pair_samples(*folders)] == ["0-0.png", *others]
    (folders[0] / "0-0.png").unlink()
    assert [one.file for one in pair_samples(*folders)] == ["copy-0.png", *others]


def test_a_file_outside_of_the_sample_folders_is_not_embedded(folders, tmp_path):
    """A page is sent to people: a manifest from elsewhere must not choose what it holds."""
    secret = write_png(tmp_path / "secret.png")
    for name in ("../secret.png", str(secret), "link.png", "sub/secret.png", "", "a\0b.png", 7):
        for folder in folders:
            (folder / "sub").unlink(missing_ok=True)
            (folder / "sub").symlink_to(tmp_path)
            (folder / "link.png").unlink(missing_ok=True)
            (folder / "link.png").symlink_to(secret)
            line = json.dumps({"file": name, "prompt": "a lake"})
            (folder / "manifest.jsonl").write_text(line)
        with refused():
            pair_samples(*folders)


@pytest.mark.parametrize(
    "name, content",
    [
        ("0-0.png", b"root:x:0:0:root:/root:/bin/sh\n"),
        ("0-0.png", b"\x89PNG\r\n\x1a\n"),
        ("0-0.mp4", b""),
        ("0-0.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"),
        ("0-0.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ],
)
def test_what_is_no_video_or_image_is_not_embedded(folders, tmp_path, name, content):
    for folder in folders:
        (folder / name).write_bytes(content)
        line = json.dumps({"file": name, "prompt": "a lake"})
        (folder / "manifest.jsonl").write_text(line)
    with refused(folders[0] / name):
        write_study(
            tmp_path / "page.html",
            pair_samples(*folders),
            title="Which?",
            question="Which is better?",
            names=("ours", "theirs"),
        )
    assert not (tmp_path / "page.html").exists()


def test_a_link_within_a_sample_folder_is_followed(folders):
    for folder in folders:
        (folder / "again-0.png").symlink_to("0-0.png")
        line = json.dumps({"file": "again-0.png", "prompt": "a lake"})
        (folder / "manifest.jsonl").write_text(line)
    (question,) = pair_samples(*folders)
    assert embed(question.sides[0]) == embed(folders[0] / "0-0.png")


def test_a_broken_manifest_is_named_with_its_line(folders):
    for line in ("[" * 100_000, "{", '"file prompt"', '{"file": "0-0.png"}'):
        (folders[0] / "manifest.jsonl").write_text(f"\n{line}\n")
        with refused(folders[0] / "manifest.jsonl", "line 2"):
            pair_samples(*folders)


def test_the_page_does_not_say_who_is_who(study):
    page, key = study
    text = page.read_text()
    assert (
        (key["A"], key["B"]) == ("ours", "theirs") and "ours" not in text and "theirs" not in text
    )


def test_the_page_says_to_whom_votes_are_sent_and_what_is_saved(folders, tmp_path):
    page = tmp_path / "study.html"
    sides = ["--a", str(folders[0]), "--b", str(folders[1]), "--out", str(page)]
    main(["study", "make", *sides, "--send-to", "Ada <ada@example.org>"])
    assert "Send this file to Ada &lt;ada@example.org&gt;." in page.read_text()
    main(["study", "make", *sides])
    assert "Send this file to the person who sent you this page." in page.read_text()


def test_a_page_that_no_browser_would_open_is_not_written(tmp_path):
    video, small = tmp_path / "v.mp4", tmp_path / "w.mp4"
    for path, size in ((video, 100 * 2**20), (small, 1)):
        with path.open("wb") as file:
            file.truncate(size)
    questions = [
        Question(f"prompt {index}", f"{index}.mp4", f"{index}.mp4", (video, small))
        for index in range(1000)
    ]
    with refused("1000", "--pairs 3"):
        write_study(tmp_path / "page.html", questions, title="", question="", names=("a", "b"))
    with video.open("r+b") as file:
        file.truncate(400 * 2**20)
    with refused("0.mp4"):  # --pairs 0 would be all of them
        write_study(tmp_path / "page.html", questions, title="", question="", names=("a", "b"))
    assert not list(tmp_path.glob("page*"))


def test_votes_are_counted_with_their_interval(study):
    _, key = study
    votes = tally(
        key,
        [ballot(key, f"p{i}", _0="A", _1="A", _2="same") for i in range(10)]
        + [ballot(key, "q", _0="B")],
    )
    assert (votes.a, votes.b, votes.same, votes.people) == (20, 1, 10, 11)
    assert (
        votes.preferred.value == pytest.approx(20 / 21)
        and votes.decided
        and votes.per_pair[0] == (10, 1, 0)
    )


def test_a_tie_is_undecided_and_no_choice_is_no_share(study):
    _, key = study
    assert not tally(key, [ballot(key, "p", _0="A", _1="B")]).decided
    assert tally(key, [ballot(key, "p", _0="same")]).preferred is None


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"study": "other"}, ("'other'",)),
        ({"votes": {"0": "C"}}, ("'C'", "'0'")),
        ({"votes": {"7": "A"}}, ("'7'",)),
        ({"person": "p"}, ("p.json",)),
        ({"person": None}, ("person",)),
        ({"votes": ["A"]}, ("votes=['A']",)),
        ({"votes": {"0": "A" * 10_000}}, ("second.json",)),
        ({"votes": {"9" * 5000: "A"}}, ("second.json",)),
    ],
)
def test_ballots_that_do_not_count_are_refused(study, change, facts):
    _, key = study
    name, good = ballot(key, "p", _0="A")
    with refused(*facts) as caught:
        tally(key, [(name, good), ("second.json", good | {"person": "q"} | change)])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [None, "a prompt", "[1]", '{"study": "x"}', '{"votes": {}}'],
    ids=["missing", "text", "list", "no votes", "no study"],
)
def test_a_file_that_holds_no_votes_is_named(tmp_path, text):
    (tmp_path / "key.json").write_text('{"study": "x", "pairs": [], "A": "ours", "B": "theirs"}')
    if text is not None:
        (tmp_path / "votes.json").write_text(text)
    key, votes = str(tmp_path / "key.json"), str(tmp_path / "votes.json")
    with refused("error", tmp_path / "votes.json", error=SystemExit):
        main(["study", "tally", "--key", key, votes])


def test_votes_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "votes.json").write_text('{"study": "x", "votes": {}}', encoding="utf-8-sig")
    assert read_votes(tmp_path / "votes.json", "study", "votes")["study"] == "x"


def open_study(browser, page):
    """Open a study page and wait until it has read what it has kept.

    A page that still stores a vote asks before it is left, so the one before must have ended.
    """
    browser.wait("typeof unwritten === 'undefined' || unwritten === 0")
    browser.open(page)
    browser.wait("mine !== null && unwritten === 0")


@needs_chromium
@pytest.mark.slow
def test_a_person_votes_in_a_real_browser(study, tmp_path):
    """By key, by touch and by 'no difference'; back again changes a vote, a reload loses none, the
    file says it all.
    """
    page, key = study
    ids = "items.map(i => i.id).map(i => mine.order[i])"
    with Browser(tmp_path) as browser:
        browser.before_scripts(FORGETFUL)
        open_study(browser, page)
        assert browser.value(
            "document.querySelector('#prompt b') === null"
        )  # prompts are text, not markup
        order, swapped = browser.value(ids), browser.value("mine.swapped")
        shown = "document.querySelector('#end').checkVisibility()"
        assert browser.value(PROMPT_IS_DARKEST)

        def left(pair):
            return "B" if swapped[pair] else "A"

        def right(pair):
            return "A" if swapped[pair] else "B"

        browser.key("ArrowLeft")
        assert (
            browser.value("mine.votes") == {str(order[0]): left(order[0])}
            and browser.value("mine.at") == 1
        )
        browser.tap("#right")
        browser.wait("mine.at === 2")
        assert not browser.value(shown)
        browser.key("ArrowDown")
        assert browser.value(shown)
        expected = {
            str(order[0]): left(order[0]),
            str(order[1]): right(order[1]),
            str(order[2]): "same",
        }
        assert browser.value("mine.votes") == expected
        browser.wait("unwritten === 0")
        open_study(browser, page)  # a reload goes on with the same order, sides and votes
        assert (
            browser.value("mine.votes") == expected
            and browser.value(ids) == order
            and browser.value("mine.at") == 2
        )
        browser.key("Backspace")
        browser.key("Backspace")
        assert (
            browser.value("mine.at") == 0
            and browser.value("document.querySelector('#left').getAttribute('aria-pressed')")
            == "true"
        )
        browser.key("ArrowRight")
        file = browser.download("#save")
        saved, named = json.loads(file.read_text()), browser.value("fileName()")
        assert file.name == named == browser.value("document.querySelector('#file').textContent")
        assert browser.value("document.querySelectorAll('#pair img, #pair video').length") == 2
    assert saved["study"] == key["study"] and saved["votes"] == expected | {
        str(order[0]): right(order[0])
    }
    assert tally(key, [("saved", saved)]).people == 1


@needs_chromium
@pytest.mark.slow
def test_sides_are_drawn_anew_for_every_person(study, tmp_path):
    """Over 20 people each side of each pair is seen; the pictures are where the page says."""
    page, _ = study
    with Browser(tmp_path) as browser:
        open_study(browser, page)
        drawn = browser.value("Array.from({length: 20}, () => fresh().swapped.join(''))")
        browser.value("mine.at = mine.order.indexOf(0), show()")
        first = browser.value("sides()[0]")
        light = browser.value(
            "(async () => { const c = document.createElement('canvas'), i ="
            " document.querySelector('#left img'); await i.decode(); c.width = c.height = 1; const"
            " g = c.getContext('2d'); g.drawImage(i, 0, 0, 1, 1); return g.getImageData(0, 0, 1,"
            " 1).data[0] > 127; })()"
        )
    assert all(len({people[pair] for people in drawn}) == 2 for pair in range(3)) and light == (
        first == "A"
    )


@needs_chromium
@pytest.mark.slow
def test_a_browser_that_keeps_nothing_says_so(study, tmp_path):
    """The page works without storage, and where storing a vote fails."""
    page, _ = study
    said = "document.querySelector('#state').textContent.includes('save before')"
    with Browser(tmp_path) as browser:
        open_study(browser, page)
        assert not browser.value(said)
        browser.value("database.close()")
        browser.key("ArrowDown")
        assert browser.value("Object.values(mine.votes)") == ["same"] and browser.value(said)
        browser.before_scripts("Object.defineProperty(window, 'indexedDB', {value: undefined})")
        open_study(browser, page)
        browser.key("ArrowDown")
        assert browser.value("Object.values(mine.votes)") == ["same"] and browser.value(said)


def test_pairs_start_from_one_image_and_the_page_shows_it(folders, tmp_path):
    """A pair of two different images is not asked, and an image that has changed is not shown."""
    image = tmp_path / "given.png"
    write_image(image, torch.zeros(3, 8, 8))
    for folder in folders:
        lines = (folder / "manifest.jsonl").read_text().split("\n")
        entries = [json.loads(line) for line in lines if line]
        entries[0] |= {"image": str(image), "image_sha256": file_digest(image)}
        entries[1] |= {"image": "x.png", "image_sha256": folder.name}
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    first, last = pair_samples(*folders)
    assert (first.image, last.image) == (image, None) and last.prompt == "a still lake"
    page = tmp_path / "study.html"
    write_study(page, [first, last], title="t", question="q", names=("a", "b"))
    assert page.read_text().count(embed(image).source) == 1
    write_image(image, torch.ones(3, 8, 8))
    assert pair_samples(*folders)[0].image is None


@pytest.mark.parametrize("suffix, shown", [(".webp", True), (".gif", True), (".bmp", False)])
def test_a_given_image_is_shown_if_browsers_show_its_kind(folders, tmp_path, suffix, shown):
    image = tmp_path / f"given{suffix}"
    Image.new("RGB", (8, 8), "red").save(image)
    for folder in folders:
        lines = (folder / "manifest.jsonl").read_text().split("\n")
        entries = [json.loads(line) for line in lines if line]
        entries[0] |= {"image": str(image), "image_sha256": file_digest(image)}
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))
    questions = pair_samples(*folders)
    assert questions[0].image == (image if shown else None)
    names = ("ours", "theirs")
    write_study(tmp_path / "s.html", questions, title="t", question="q", names=names)
    kind = f"data:image/{suffix[1:]}"
    assert (kind in (tmp_path / "s.html").read_text()) == shown
