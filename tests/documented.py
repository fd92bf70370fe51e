"""Commands and settings in README.md, CONTRIBUTING.md, docs/ and the programs' docstrings."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tdmvid.cli.main import command_parser
from tdmvid.config import ImageConfig, VBenchConfig, from_dict, load_config, read_settings
from tdmvid.config.ranges import check_options
from tdmvid.config.resources import find_evaluation

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/shapes/README.md",
    ROOT / "benchmarks/NOTES.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md")),
]
SHELL = ("", "bash", "sh", "console")
"""Labels of fences whose lines are all commands."""
FENCE = re.compile(r"^( *)```([\w.+-]*)([^\n]*)\n(.*?)^ *```$", re.M | re.S)
HEADING = re.compile(r"^#+ .*$", re.M)
EMBEDDED = ("shapes",)
EVALUATIONS = {"vbench": VBenchConfig, "images": ImageConfig}
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
MENTIONED = ("tdmvid", "python")
STARTS = re.compile(r'main\(\[((?:"\w+", )+)\*sys\.argv')
"""The call in a script of launch/ or eval/ that starts a command of `tdmvid`."""
PLACEHOLDER = re.compile(r"^(\.\.\.|[A-Z]+|my_\w+\.json)$")
"""What a reader is to replace: `--config ...`, `--config FILE`, `--config my_config.json`."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        page: Path of the page, relative to the repository.
        line: Number of its first line.
        label: Its language, "" if it has none.
        text: What is in it.
        section: The text of the page from the last heading to the end of the block.
    """

    page: str
    line: int
    label: str
    text: str
    section: str


@dataclass(frozen=True)
class Command:
    """One command line: its words, without comment and environment, and where it is."""

    words: tuple[str, ...]
    block: Block

    def __str__(self) -> str:
        return f"{self.block.page}:{self.block.line}: {shlex.join(self.words)}"


class Parsed(Exception):
    """Raised in place of what a program does after it has parsed its options."""


def blocks() -> list[Block]:
    """The fenced blocks of all pages."""
    return [block for page in PAGES for block in blocks_of(page)]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of one page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        start = max((one.start() for one in HEADING.finditer(text, 0, match.start())), default=0)
        found.append(
            Block(
                str(page.relative_to(ROOT)),
                text.count("\n", 0, match.start()) + 1,
                match[2],
                match[4],
                text[start : match.end()],
            )
        )
    return found


def commands() -> list[Command]:
    """The command lines of all shell blocks; lines that a backslash continues are one."""
    found = []
    for block in blocks():
        if block.label in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                found += [Command(words, block) for words in split_line(line)]
    return found


def usages() -> list[Command]:
    """The commands in the docstrings of programs, which are their help texts."""
    found = []
    for folder in ("tdmvid/cli", "launch", "eval", "benchmarks", "examples/shapes"):
        for path in sorted((ROOT / folder).glob("*.py")):
            page = str(path.relative_to(ROOT))
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts = [ast.get_docstring(tree) or ""]
            texts += [  # help texts of nested commands
                node.value.value
                for node in tree.body
                if isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ]
            for text in texts:
                found += _usages_of(page, text)
    return found


def _usages_of(page: str, text: str) -> list[Command]:
    """The commands in the indented lines of a docstring."""
    block = Block(page, 1, "", text, text)
    lines = textwrap.dedent(text).replace("\\\n", " ").splitlines()
    return [
        Command(words, block)
        for line in lines
        if line.startswith("    ")
        for words in split_line(line)
        if words[0] in PROGRAMS and words[-1] != "..."  # an abbreviation
    ]


def mentions() -> list[Command]:
    """The commands between backticks in the text of all pages. They may lack required options."""
    found = {}
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for text in INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            for words in split_line(" ".join(text.split())):
                if words[0] in MENTIONED and len(words) > 1:
                    found[words] = Command(words, Block(name, 1, "", text, ""))
    return list(found.values())


def check_mention(command: Command) -> None:
    """Check that the program of a mention has every option that the mention names.

    Raises:
        AssertionError: For an unknown option.
    """
    words = list(command.words)
    if words[1].startswith("tests/"):
        assert (ROOT / words[1]).is_file(), command
        return
    parser, rest = parser_of(words)
    commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if commands and rest and rest[0] in commands[0].choices:
        parser = commands[0].choices[rest[0]]
    unknown = {word for word in rest if word.startswith("--")} - set(parser._option_string_actions)
    assert not unknown, f"{command}: {', '.join(sorted(unknown))}"


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of a program of ours, and the words that it parses."""
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        program, *rest = rest[1:]
    elif program == "python":
        start = STARTS.search((ROOT / rest[0]).read_text(encoding="utf-8"))
        program, *rest = rest
        if start is not None:
            program, rest = "tdmvid", [*re.findall(r"\w+", start[1]), *rest]
        else:
            program = program.removesuffix(".py").replace("/", ".")
    if program == "tdmvid":
        return command_parser(rest[0]), rest[1:]
    return build_parser(program), rest


def split_line(line: str) -> list[tuple[str, ...]]:
    """The commands of a line, which `;` and `&&` part, without prompt, environment and output."""
    parts: list[list[str]] = [[]]
    try:
        all_words = shlex.split(line, comments=True)
    except ValueError:  # a text, and no command
        return [(line,)]
    for word in all_words:
        if word in ("&&", ";") or word.endswith(";"):
            parts[-1] += [word.rstrip(";")] * (word not in ("&&", ";"))
            parts.append([])
        elif not (re.fullmatch(r"\w+=\S*", word) and not parts[-1]) and word != "$":
            parts[-1].append(word)
    cut = [words[: words.index(">")] if ">" in words else words for words in parts]
    return [tuple(words) for words in cut if words]


def parse_tdmvid(words: list[str]) -> argparse.Namespace:
    """Parse the words after `tdmvid`, and resolve the configs and settings that they name."""
    if words[:1] == ["--help"]:
        return argparse.Namespace()
    args = command_parser(words[0]).parse_args(words[1:])
    check_options(vars(args))
    config = getattr(args, "config", None)
    if not config or PLACEHOLDER.match(config):
        return args
    if words[0] == "score":
        from_dict(EVALUATIONS[words[1]], read_settings(find_evaluation(config), args.set))
    else:
        args.run_config = load_config(config, args.set)
    return args


def parse_script(words: list[str]) -> argparse.Namespace:
    """Parse `launch/X.py ...` or `eval/X.py ...`, which start a command of `tdmvid`."""
    text = (ROOT / words[0]).read_text(encoding="utf-8")
    start = STARTS.search(text)
    if start is None:
        return parse_main(words[0].removesuffix(".py").replace("/", "."), words[1:])
    return parse_tdmvid([*re.findall(r"\w+", start[1]), *words[1:]])


def parse_main(module: str, words: list[str]) -> argparse.Namespace:
    """Parse the options of a program with a `main`, by the parser that it builds itself."""
    return build_parser(module).parse_args(words)


def build_parser(module: str) -> argparse.ArgumentParser:
    """Return the parser that the `main` of a program builds."""
    found: list[argparse.ArgumentParser] = []
    with pytest.MonkeyPatch.context() as patch:

        def parse_args(parser: argparse.ArgumentParser, *_: object) -> None:
            found.append(parser)
            raise Parsed

        program = importlib.import_module(module.removeprefix("eval."))  # eval/ is on the path
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(Parsed):
            program.main()
    return found[0]


def parse_python(words: list[str]) -> argparse.Namespace:
    """Parse what comes after `python`."""
    if words[0] != "-m":
        return parse_script(words)
    module, *rest = words[1:]
    if module == "tdmvid":
        return parse_tdmvid(rest)
    if module == "pytest":
        return parse_pytest(rest)
    return parse_main(module, rest)


def parse_pytest(words: list[str]) -> argparse.Namespace:
    """Check that the files and folders exist whose tests are run."""
    for word in words:
        assert not word.startswith("tests") or (ROOT / word.split("::")[0]).exists(), word
    return argparse.Namespace()


def parse_torchrun(words: list[str]) -> argparse.Namespace:
    """Parse torchrun's own options, and then those of what it starts."""
    args = get_args_parser().parse_args(words)
    started = [args.training_script, *args.training_script_args]
    return parse_python(["-m", *started] if args.module else started)


def parse_deepspeed(words: list[str]) -> argparse.Namespace:
    """Parse DeepSpeed's own options, and then those of the script that it starts."""
    parser = argparse.ArgumentParser("deepspeed")
    for option in ("--num_accelerators", "--num_gpus", "--num_nodes"):
        parser.add_argument(option, type=int)
    parser.add_argument("--hostfile")
    parser.add_argument("script")
    parser.add_argument("options", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    return parse_script([args.script, *args.options])


def parse_sbatch(words: list[str]) -> argparse.Namespace:
    """Parse a job: options of sbatch, one of our scripts, a config, options of `tdmvid train`."""
    place = next(i for i, word in enumerate(words) if not word.startswith("--"))
    known = "nodes|array|time|gpus-per-node|cpus-per-task|partition|account"
    for option in words[:place]:
        assert re.match(rf"--({known})=\S+$", option)
    script, config, *options = words[place:]
    assert (ROOT / script).is_file(), script
    options = [word.replace("%a", "0") for word in options]
    return parse_tdmvid(["train", "--config", config, "--resume", "auto", *options])


def parse_make(words: list[str]) -> argparse.Namespace:
    """Check that the Makefile has the target."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {word for word in words if "=" not in word} <= set(targets), words
    return argparse.Namespace()


def parse_pip(words: list[str]) -> argparse.Namespace:
    """Check that setup.py has the extra that is installed."""
    text = (ROOT / "setup.py").read_text()
    for extra in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
        for name in extra.split(","):
            assert f'"{name}": ' in text, name
    return argparse.Namespace()


def parse_hub(words: list[str]) -> argparse.Namespace:
    """Check that a model that is downloaded is one that a plan knows."""
    assert words[0] in ("auth", "download"), words
    folder = ROOT / "tdmvid/backbones/architectures" / words[1].replace("/", "--")
    assert words[0] == "auth" or folder.is_dir(), words
    return argparse.Namespace()


PROGRAMS: dict[str, Callable[[list[str]], argparse.Namespace]] = {
    "tdmvid": parse_tdmvid,
    "python": parse_python,
    "torchrun": parse_torchrun,
    "deepspeed": parse_deepspeed,
    "sbatch": parse_sbatch,
    "make": parse_make,
    "pip": parse_pip,
    "hf": parse_hub,
    "pytest": parse_pytest,
}
OTHERS = {
    "source",
    "printf",
    "git",
    "mkdir",
    "ln",
    "cd",
    "tensorboard",
    "pre-commit",
    "apt-get",
    "wandb",
}
"""Programs that are not ours and change nothing that a test could check."""


def parse(command: Command) -> argparse.Namespace:
    """Parse a command by the program's own parser.

    Raises:
        AssertionError: For a program that no page may name without a change here.
    """
    program, *words = command.words
    if program in PROGRAMS:
        return PROGRAMS[program](words)
    assert program in OTHERS or (ROOT / program).is_file(), f"unknown program {program!r}"
    return argparse.Namespace()
