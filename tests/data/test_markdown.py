"""Prompts and names in Markdown and YAML stay text, whatever they contain."""

import re

import pytest

from tdmvid.data.markdown import code, escape, front_matter, read_front_matter

PROMPTS = [
    "a red ring",
    "](javascript:alert(1)) ![x](http://evil/x.png) [y]",
    "<script>alert(1)</script> &lt;b&gt; <!-- c",
    "one\n\n# two\n---\n| a | b |\n\u2028three\r\x85four",
    "`code` ``` $x$ ~~s~~ *b* _i_ __b__ snake_case \\",
    "https://evil.example www.evil.example a@evil.example",
    "1. one",
    "12) one",
    "- two",
    "+ three",
    "=== four",
]


def plain(markdown):
    """Return the text that CommonMark displays for text with every special character escaped."""
    shown, rest = "", iter(markdown)
    for char in rest:
        shown += next(rest) if char == "\\" else char
    return shown


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_in_markdown_is_shown_as_it_is(prompt):
    escaped = escape(prompt)
    assert plain(escaped) == " ".join(prompt.split())
    unescaped = re.sub(r"\\.", "x", escaped)
    assert not re.search(r"[`*\[\]<>#|~&$@]|://|^[-+=]|^\d+[.)]|\bwww\.", unescaped)


def test_code_ends_where_its_text_ends():
    for text in ("a`b", "``", "a|b", "a\nb"):
        shown = code(text)
        fence = shown[: len(shown) - len(shown.lstrip("`"))]
        inside = shown.removeprefix(fence).removesuffix(fence)
        assert fence not in inside.strip(" ") or len(fence) > 1
        assert inside.strip(" ").replace("\\|", "|") == " ".join(text.split())


@pytest.mark.parametrize("value", [*PROMPTS, "no", "1.5", "null", "a: b", "a #b", ""])
def test_yaml_keeps_every_text(value):
    text = front_matter({"base_model": value, "tags": ["lora", value]})
    assert read_front_matter(f"{text}\n\n# card\n") == {
        "base_model": value,
        "tags": ["lora", value],
    }
    assert text.count("\n---") == 1


def test_a_front_matter_that_is_no_yaml_says_nothing():
    for text in ("", "# card", "---\na: [\n---\n", "---\n- a\n---\n", "---\n!!python/x\n---\n"):
        assert read_front_matter(text) == {}
