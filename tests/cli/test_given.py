"""Options that a call would ignore are refused, and parsing says which options are given."""

import argparse

import pytest
from refusals import refused

from tdmvid.cli.given import parse_options, refuse_ignored
from tdmvid.cli.leave import Parser


def parser():
    outer = Parser()
    outer.add_argument("--out", default="here")
    inner = outer.add_subparsers().add_parser("one")
    inner.add_argument("--steps", type=int, default=4)
    inner.add_argument("--fuse", action="store_true")
    inner.add_argument("--prompt", action="append", default=[])
    inner.set_defaults(function=print)
    return outer


def test_an_option_with_its_default_value_is_given_too():
    args = parse_options(parser(), ["one", "--steps", "4"])
    assert (args.out, args.steps, args.fuse, args.prompt) == ("here", 4, False, [])
    assert args.given & {"out", "steps", "fuse", "prompt"} == {"steps"}


@pytest.mark.parametrize(
    "words, fact",
    [
        (["--steps", "4"], "--steps=4"),
        (["--fuse"], "--fuse"),
        (["--prompt", "a", "--prompt", "b"], "--prompt=['a', 'b']"),
    ],
)
def test_an_option_without_effect_is_refused_by_name_and_value(words, fact):
    args = parse_options(parser(), ["one", *words])
    with refused(fact, "with --run", "remove it"):
        refuse_ignored(args, ["steps", "fuse", "prompt"], "with --run")


def test_options_that_are_not_given_are_not_refused():
    refuse_ignored(parse_options(parser(), ["one"]), ["steps", "fuse", "prompt"], "with --run")
    refuse_ignored(argparse.Namespace(given=set(), steps=3), ["steps"], "with --run")
