"""Options that several commands share. Imports no large packages, so that --help is fast."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from ..config.paths import expand_home, home_path
from ..config.rules import short
from .given import refuse_ignored

VERBOSE_OPTION = "--verbose"
STUDENT = "lora/ or student/ folder of a run, or an exported folder"


def add_config(
    parser: argparse.ArgumentParser, *, example: str, required: bool = True, default: str = ""
) -> None:
    """Add `--config` and `--set` to a parser.

    Args:
        parser: The parser.
        example: Name of a built-in config, for the help text.
        required: Whether `--config` is required.
        default: Description of the default, for the help text.
    """
    other = f" (default: {default})" if default else ""
    parser.add_argument(
        "--config",
        type=expand_home,
        required=required,
        help=f"JSON file or name of a built-in config, e.g. {example}{other}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting; can be repeated",
    )


def output_folder(text: str) -> Path:
    """Convert an option to the path of a folder to write to. Checked before anything is loaded.

    Args:
        text: The option.

    Returns:
        The path. The folder may be missing.

    Raises:
        argparse.ArgumentTypeError: If no file can be created in it.
    """
    return _checked(home_path(text), home_path(text))


def output_file(text: str) -> Path:
    """Convert an option to the path of a file to write. Checked before anything is loaded.

    Args:
        text: The option.

    Returns:
        The path. The file and its folder may be missing.

    Raises:
        argparse.ArgumentTypeError: If it is a folder, or no file can be created in its folder.
    """
    path = home_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: add the name of a file")
    return _checked(path, path.parent)


def _checked(path: Path, folder: Path) -> Path:
    from ..data.files import why_unwritable

    if reason := why_unwritable(folder):
        raise argparse.ArgumentTypeError(
            f"{str(path)!r} cannot be written ({reason}): choose another folder"
        )
    return path


def refuse_inputs(args: argparse.Namespace, names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Refuse to write to a file that the call reads, because its content would be lost.

    Args:
        args: Parsed options.
        names: Names of the options with files to write, e.g. "json"; those not given are skipped.
        inputs: Files that the call reads.

    Raises:
        ValueError: If one of them is a file to write.
    """
    read = {path.resolve() for path in inputs}
    for name in names:
        path = getattr(args, name)
        if path and path.resolve() in read:
            raise ValueError(f"--{name} {path} is read by this command: use another --{name}")


def refuse_ignored_of_prompts(
    args: argparse.Namespace, source: Path | str, names: Iterable[str]
) -> None:
    """Refuse options of tables and data sets for other sources of prompts.

    Args:
        args: Parsed options.
        source: The source.
        names: Names of these options.

    Raises:
        ValueError: If one of them is given, and the source does not read it.
    """
    from ..data.prompt_kinds import SETTINGS_OF, kind_of

    kind = kind_of(source)
    ignored = [name for name in names if name not in SETTINGS_OF[kind]]
    refuse_ignored(args, ignored, f"on {short(str(source))}, which is a {kind}")


def add_evaluation(parser: argparse.ArgumentParser, *, example: str, folder: str) -> None:
    """Add the options of an evaluation, which has its own config, to a parser.

    Args:
        parser: The parser.
        example: Name of a built-in config, for the help text.
        folder: Name of the default output folder next to the student.
    """
    add_config(
        parser, example=example, required=False, default="that of the student's run or family"
    )
    parser.add_argument(
        "--lora", type=Path, help=f"{STUDENT} (default: that of the latest finished run in runs/)"
    )
    parser.add_argument(
        "--out", type=Path, help=f"output directory (default: {folder}/ next to the LoRA)"
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="list what can be scored with the installed weights and packages, and stop",
    )
    add_launched(parser)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add `--verbose` to a parser.

    `main` also searches the arguments for it, because the parser of a nested command overwrites the
    value of its parent.
    """
    parser.add_argument(
        VERBOSE_OPTION, action="store_true", help="show all warnings and messages of libraries"
    )


def add_launched(parser: argparse.ArgumentParser) -> None:
    """Accept the arguments that the deepspeed launcher adds."""
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def output_dir(args: argparse.Namespace, folder: str) -> Path:
    """Return the output directory of a command with `add_evaluation`.

    Args:
        args: Parsed options.
        folder: Name of the default folder next to the student.

    Returns:
        The directory.

    Raises:
        ValueError: If there is no student.
    """
    if args.lora is None:
        raise ValueError(
            "--lora is missing: set it to the lora/ or student/ folder of a finished run"
        )
    return args.out or args.lora.parent / folder
