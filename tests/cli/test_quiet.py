"""Libraries are silent by default; errors and the project's own warnings are always shown."""

import logging
import os
import re
import subprocess
import sys
import warnings

import pytest
from launched import ROOT, ranks

from tdmvid.cli.main import COMMANDS, main
from tdmvid.cli.quiet import ENVIRONMENT, LOGGERS, VERBOSE, hush_libraries


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """Restore everything that a test sets."""
    for name in (VERBOSE, *ENVIRONMENT, "TQDM_DELAY", "TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "warnoptions", [])
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level, logger.filters[:]) for logger in loggers]
    for logger in loggers:
        logger.filters.clear()
        logger.setLevel(logging.NOTSET)
    yield
    for logger, level, filters in before:
        logger.setLevel(level)
        logger.filters[:] = filters


def shown(category, module, verbose=False):
    """Return whether a warning of a module is shown to the user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        hush_libraries(verbose)
        warnings.warn_explicit("text", category, "file.py", 1, module=module)
    return bool(caught)


HIDDEN = [
    (FutureWarning, "torch.distributed"),
    (DeprecationWarning, "anything"),
    (UserWarning, "transformers.modeling_utils"),
    (UserWarning, "diffusers.models.attention"),
    (UserWarning, "torch.nn.modules.module"),
]
KEPT = [
    (UserWarning, "torch.cuda"),
    (UserWarning, "tdmvid.data.video"),
    (UserWarning, "transformersX"),
    (RuntimeWarning, "numpy"),
]


@pytest.mark.parametrize("category, module", HIDDEN)
def test_a_library_s_warning_is_shown_only_on_request(category, module, monkeypatch):
    assert not shown(category, module)
    assert shown(category, module, verbose=True)
    monkeypatch.setenv(VERBOSE, "1")
    assert shown(category, module)


@pytest.mark.parametrize("category, module", KEPT)
def test_other_warnings_are_shown(category, module):
    assert shown(category, module)


def test_a_user_s_own_filters_stand(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    assert shown(UserWarning, "transformers.x")


@pytest.mark.parametrize("name", [*LOGGERS, "accelerate.tracking"])
def test_a_library_s_log_shows_errors_alone(name):
    hush_libraries()
    logger = logging.getLogger(name)
    assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
    if name in LOGGERS:  # which may set a level of their own when they are imported
        logger.setLevel(logging.INFO)
        records = [
            logger.makeRecord(name, level, "", 0, "", (), None)
            for level in (logging.WARNING, logging.ERROR)
        ]
        assert [bool(logger.filter(record)) for record in records] == [False, True]
    assert logging.getLogger("tdmvid.adapters.read").isEnabledFor(logging.WARNING)


def test_what_the_user_has_set_in_the_environment_stands(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.setenv("TQDM_DELAY", "0")
    hush_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info" and os.environ["TQDM_DELAY"] == "0"
    assert os.environ["DIFFUSERS_VERBOSITY"] == "error"


@pytest.mark.parametrize(
    "words",
    [
        ["--verbose", "prompts", "images:1"],
        ["prompts", "images:1", "--verbose"],
        ["prompts", "--verbose", "images:1"],
    ],
    ids=" ".join,
)
def test_the_option_stands_anywhere_and_reaches_programs_that_are_started(words, monkeypatch):
    monkeypatch.setattr("tdmvid.cli.prompts.run", lambda args: None)
    main(words)
    assert os.environ[VERBOSE] == "1" and "TRANSFORMERS_VERBOSITY" not in os.environ


@pytest.mark.parametrize(
    "words", [*([name] for name in COMMANDS), ["score", "shapes"], ["study", "make"]], ids=" ".join
)
def test_every_command_has_the_option(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert "--verbose" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_two_ranks_prints_nothing_of_libraries(tiny_json, tmp_path):
    status, said = ranks(tiny_json, tmp_path / "out", "steps=1")
    assert status == 0, said
    ours = ("warning: ", "evaluation: ")
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(ours)]
    noise = re.compile(r"warn|deprecat|Loading (weights|pipeline)|tokenizers|\[[EWI]\d*|INFO", re.I)
    assert not [line for line in lines if noise.search(line)], said
    assert any(line.startswith("report: ") for line in lines)


BARS = """
import time
from tdmvid.cli.quiet import hush_libraries
hush_libraries()
from tqdm.auto import tqdm
for _ in tqdm(range(1000), desc="quick"): pass
with tqdm(total=50, desc="slow", delay=0.2) as bar:
    for _ in range(50):
        time.sleep(0.01)
        bar.update()
"""


def test_a_bar_is_shown_for_what_takes_long_and_seldom_where_there_is_no_terminal():
    done = subprocess.run(
        [sys.executable, "-c", BARS],
        cwd=ROOT,
        env=os.environ | {"TQDM_MININTERVAL": "0.3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "quick" not in done.stderr
    lines = [part for part in done.stderr.replace("\r", "\n").splitlines() if part.strip()]
    assert 1 <= len(lines) <= 3 and all("slow" in line for line in lines)
    assert "50/50" in lines[-1]
