"""Every number has a range, and any value in a file gives valid settings or a one-line error."""

import copy
import dataclasses
import json
import math
import random
import types
import typing

import pytest
from refusals import refused

from tdmvid.config import (
    ImageConfig,
    RunConfig,
    VBenchConfig,
    check_options,
    from_dict,
    load_config,
    objective_settings,
    read_settings,
    short,
    to_dict,
)
from tdmvid.config.json_files import read_json
from tdmvid.config.ranges import OPTIONS, SETTINGS

LONGEST = 500
"""Largest length in characters of an error message about one value."""
WHOLE = [
    from_dict(RunConfig, {"objective": {"kind": kind}, "model": {"path": "a/b"}})
    for kind in sorted(objective_settings())
] + [VBenchConfig(), ImageConfig(prompts="images")]


def numbers(config, path=()):
    """Yield the path of every number in the settings, and whether it is in a list."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), typing.get_type_hints(type(config))[field.name]
        if dataclasses.is_dataclass(value):
            yield from numbers(value, (*path, field.name))
            continue
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        listed = typing.get_origin(kind) is tuple
        if {int, float} & set(typing.get_args(kind) if listed else kinds):
            yield (*path, field.name), listed


def changed(config, path, value):
    """Return the settings as JSON values, with the value at a path replaced."""
    data = copy.deepcopy(to_dict(config))
    *parents, last = path
    inner = data
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return data


@pytest.mark.parametrize("whole", WHOLE, ids=lambda config: repr(config)[:10])
def test_no_number_is_without_bounds(whole):
    found = list(numbers(whole))
    assert len(found) > 5
    for path, listed in found:
        for value in (10**300, -(10**300), 10**5000):
            with refused(".".join(path)) as caught:
                from_dict(type(whole), changed(whole, path, [value] if listed else value))
            assert len(str(caught.value)) < LONGEST


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_allows_what_is_inside_and_nothing_outside(name):
    allowed = SETTINGS[name]
    assert allowed.holds(allowed.low) == (allowed.open != "low")
    assert allowed.holds(allowed.high) == (allowed.open != "high")
    assert allowed.holds((allowed.low + allowed.high) / 2)
    for value in (allowed.low - 1, allowed.high * 2 + 1, math.nan, math.inf, -math.inf):
        assert not allowed.holds(value)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("batch.micro", 2**40),
        ("grid.steps", 10**9),
        ("video.frames", 1_000_001),
        ("lora.rank", 32_768),
        ("grid.start", 0),
        ("grid.shift", -1),
        ("log.sample_count", 10**12),
        ("parallel.sequence", 2**31),
        ("student.clip", -1e-9),
        ("objective.cfg", 0),
        ("objective.cfg", 0.5),
        ("guard.cfg", 0.5),
    ],
)
def test_numbers_that_a_run_would_hang_on_are_refused(setting, value):
    path = setting.split(".")
    real = path[0] == "student" or path[1] in ("start", "shift", "cfg")
    shown = float(value) if real else value
    with refused(f"{setting}={shown}"):
        from_dict(RunConfig, changed(WHOLE[-3], path, value))


def test_no_expert_s_guidance_is_below_1():
    with refused("objective.cfg_2=0.5", "between 1 and 1,000"):
        from_dict(RunConfig, {"objective": {"cfg": 3, "cfg_2": 0.5}})


def test_a_list_of_numbers_is_bounded_in_its_entries_and_their_number():
    with refused("objective.step_set=[4, 1000000000]"):
        from_dict(RunConfig, {"objective": {"step_set": [4, 10**9]}})
    with refused("grid.timesteps", "1000"):
        from_dict(RunConfig, {"grid": {"kind": "explicit", "timesteps": [1] * 2000}})


def test_a_negative_zero_is_a_zero():
    data = {"student": {"weight_decay": -0.0}, "ema": -0.0}
    config = from_dict(RunConfig, data)
    assert [math.copysign(1, x) for x in (config.student.weight_decay, config.ema)] == [1, 1]


@pytest.mark.parametrize(
    "text, facts",
    [
        ('{"steps": 1, "steps": 2}', ("'steps'",)),
        ('{"lora": {"rank": 1, "alpha": 1, "rank": 2}}', ("'rank'",)),
        ("[" * 100_000, ()),
        ('{"steps": 1' + "0" * 5000 + "}", ()),
        ('{"steps": 1,\n}', ("2",)),
        ("", ("1",)),
        ('{"' + "x" * 10**6 + '": 1, "' + "x" * 10**6 + '": 1}', ()),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_cannot_be_read_names_its_file(tmp_path, text, facts):
    path = tmp_path / "some.json"
    path.write_text(text)
    with refused("some.json", *facts) as caught:
        read_settings(path)
    assert len(str(caught.value)) < LONGEST + len(str(path))


def test_a_key_that_is_given_twice_on_the_command_line_is_refused_too(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with refused("--set", "'path'"):
        load_config(tmp_path / "a.json", ['model={"path": "a", "path": "b"}'])


def test_a_mark_at_the_start_of_a_file_is_no_part_of_it(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"steps": 3}')
    assert read_json(tmp_path / "a.json") == {"steps": 3}


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 10**5000, ["x" * 100] * 10**5, {"k" * 100: [1] * 10**5}, [[10**5000] * 9] * 9],
    ids=lambda value: type(value).__name__,
)
def test_a_message_repeats_no_more_of_a_value_than_a_line(value):
    assert len(short(value)) <= 80
    with pytest.raises(ValueError) as caught:
        from_dict(RunConfig, {"model": {"dtype": value}})
    assert len(str(caught.value)) < LONGEST


@pytest.mark.parametrize(
    "option, value",
    [
        ("cfg", 0.0),
        ("cfg", -1.0),
        ("cfg", math.nan),
        ("steps", -1),
        ("steps", 0),
        ("scale", math.nan),
        ("scale", 1e30),
        ("fps", 10**30),
        ("batch", 2**40),
        ("seed", 2**62),
        ("ranks", 0),
        ("device_memory", math.inf),
    ],
)
def test_a_number_of_a_command_is_refused_out_of_its_range(option, value):
    with refused(f"--{option.replace('_', '-')}={short(value)}"):
        check_options({option: value})


def test_what_a_command_leaves_out_or_writes_as_text_is_not_a_number():
    check_options(dict.fromkeys(OPTIONS) | {"seeds": "0,1", "limit": 0})


VALUES = [
    *(0, -0.0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 10**309, 10**5000),
    *(2, 3, 4, 5, 8, 16, 0.1, 0.25, 0.9, [2, 4], [0.5, 0.9], ["to_q"], "a b", "float16") * 4,
    *(1e-320, 1e30, -1e30, 1e308, math.inf, -math.inf, math.nan, 0.5, 999.0),
    *("", " ", "x", "\0", "\ud800", "a\nb", "../..", "/", "NaN", "1e9", "😀" * 100, "x" * 10**5),
    *(None, True, False, [], {}, [[]], [None], [10**9], ["x"], {"x": 1}, [1] * 5000),
    *([math.nan], [2**64, -1], {"kind": "tdm"}, {"path": []}, "sdpa", "explicit", "dmd2", "gan"),
]


def leaves(data, path=()):
    """Yield the path of every entry in a JSON value."""
    for key, value in data.items() if isinstance(data, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def test_mutated_settings_make_a_run_or_one_line():
    draw = random.Random(0)
    outcomes = {True: 0, False: 0}
    for _ in range(600):
        whole = draw.choice(WHOLE)
        data = to_dict(whole)
        for _ in range(draw.choice((1, 1, 2, 4))):
            *parents, last = draw.choice(list(leaves(data)))
            inner = data
            for name in parents:
                inner = inner[name]
            if draw.random() < 0.1:
                inner[draw.choice(["", "x" * 5000, "a.b", "\n", last + "x"])] = inner.pop(last)
            else:
                inner[last] = copy.deepcopy(draw.choice(VALUES))
        try:
            made = from_dict(type(whole), data)
        except ValueError as error:
            assert 5 < len(str(error)) < LONGEST and "\n" not in str(error), str(error)[:200]
            outcomes[False] += 1
        else:
            assert from_dict(type(whole), json.loads(json.dumps(to_dict(made)))) == made
            outcomes[True] += 1
    assert min(outcomes.values()) > 20
