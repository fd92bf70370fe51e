"""A config file means one run: nothing is misread, and what is wrong is named by its dotted path."""

import dataclasses
import json
from pathlib import Path

import pytest

from tdmvid.config.run import LogConfig, RunConfig, from_dict, load_config, to_dict
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.train.setup import reference_grid

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.json"))
UNUSUAL = {
    "name": "x",
    "seed": 3,
    "steps": 7,
    "model": {"path": "a/b", "revision": "main", "dtype": "bfloat16"},
    "grid": {"kind": "explicit", "timesteps": [999, 856.5]},
    "objective": {"cfg": 4, "huber_c": 0.1, "randmid": True},
    "lora": {"targets": ["to_q", "to_k"]},
    "student": {"betas": [0.9, 0.95]},
    "log": {"sample_prompts": ["a", "b"]},
}


@pytest.fixture
def load(tmp_path):
    """`load(data, *overrides)` through a file."""

    def load(data, *overrides):
        (tmp_path / "some.json").write_text(data if isinstance(data, str) else json.dumps(data))
        return load_config(tmp_path / "some.json", list(overrides))

    return load


def test_a_config_comes_back_from_its_json(load):
    config = load(UNUSUAL)
    assert load(to_dict(config)) == config and to_dict(load(to_dict(config))) == to_dict(config)
    assert (
        config.objective.cfg == 4.0
        and config.student.betas == (0.9, 0.95)
        and config.lora.targets == ("to_q", "to_k")
    )
    assert (
        config.grid.timesteps == (999.0, 856.5)
        and config.model.revision == "main"
        and config.objective.huber_c == 0.1
    )


def test_what_a_file_leaves_out_is_the_dataclass_s_default(load):
    assert from_dict(RunConfig, {}) == RunConfig() == dataclasses.replace(load({}), name="run")
    assert load({"student": {"warmup": 5}}).student == dataclasses.replace(
        RunConfig().student, warmup=5
    )


def test_the_resolved_config_holds_every_setting():
    def leaves(value):
        return sum(map(leaves, value.values())) if isinstance(value, dict) else 1

    def fields(cls_value):
        return (
            sum(fields(getattr(cls_value, f.name)) for f in dataclasses.fields(cls_value))
            if dataclasses.is_dataclass(cls_value)
            else 1
        )

    assert leaves(to_dict(RunConfig())) == fields(RunConfig()) > 40


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b"])
def test_a_name_is_one_of_a_folder(load, name):
    with pytest.raises(
        ValueError,
        match="name=.* names the run folder and files: a name without slashes, and not empty",
    ):
        load({"name": name})


def test_the_name_is_the_file_s_unless_given(load):
    assert (
        load({}).name == "some"
        and load({"name": "other"}).folder == Path("runs/other")
        and load({}, "out=here").folder == Path("here")
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ready_config_loads_and_comes_back(path):
    config = load_config(path)
    assert from_dict(RunConfig, to_dict(config)) == config and config.name == path.stem


def test_there_are_ready_configs():
    assert CONFIGS


@pytest.mark.parametrize(
    "override, path, value",
    [
        ("steps=2", ("steps",), 2),
        ("student.lr=1e-5", ("student", "lr"), 1e-5),
        ("student.lr=1", ("student", "lr"), 1.0),
        ("objective.distance=huber_vector", ("objective", "distance"), "huber_vector"),
        ("objective.huber_c=null", ("objective", "huber_c"), None),
        ("objective.randmid=false", ("objective", "randmid"), False),
        ('log.sample_prompts=["a=b", "c"]', ("log", "sample_prompts"), ("a=b", "c")),
        ("model.path=a=b", ("model", "path"), "a=b"),
        ('model={"path": "p", "dtype": "float16"}', ("model", "dtype"), "float16"),
    ],
    ids=str,
)
def test_set_overrides_one_setting_and_leaves_its_neighbours(load, override, path, value):
    config = load(UNUSUAL, override)
    found = config
    for name in path:
        found = getattr(found, name)
    assert found == value and type(found) is type(value)
    assert (config.seed, config.lora.targets) == (3, ("to_q", "to_k")) and (
        path[0] == "student"
    ) <= (config.student.betas == (0.9, 0.95))


def test_the_last_override_wins(load):
    assert load({}, "steps=2", "steps=3").steps == 3


@pytest.mark.parametrize(
    "data, message",
    [
        ({"objectve": {"cfg": 1}}, "unknown setting 'objectve': did you mean 'objective'"),
        ({"student": {"lrr": 1}}, "unknown setting 'student.lrr': did you mean 'lr'"),
        ({"grid": {"zzz": 1}}, "unknown setting 'grid.zzz': known here are kind, steps, start"),
        ({"steps": "many"}, "steps='many' must be of type int"),
        ({"steps": 2.5}, "steps=2.5 must be of type int"),
        ({"steps": True}, "steps=True must be of type int"),
        ({"student": {"lr": "1e-4"}}, r"student\.lr='1e-4' must be of type float"),
        ({"student": 3}, "student must be a JSON object, not 3"),
        ({"lora": {"targets": "to_q"}}, r"lora\.targets='to_q' must be a list"),
        ({"lora": {"targets": ["to_q", 3]}}, r"lora\.targets\[1\]=3 must be of type str"),
        (
            {"grid": {"kind": "unifrom"}},
            r"grid\.kind='unifrom': choose one of 'uniform', 'shifted', 'explicit'",
        ),
        ({"objective": {"huber_c": "x"}}, r"objective\.huber_c='x' must be of type float"),
        ('{"ema": NaN}', "ema=nan must be a finite number"),
        ('{"student": {"lr": Infinity}}', r"student\.lr=inf must be a finite number"),
        ({"steps": 0}, "steps=0: a run has at least 1 step"),
        ({"ema": 1}, r"ema=1.0: a decay is in \[0, 1\); 0 turns averaging off"),
        ({"max_bad_steps": 0}, "max_bad_steps=0: .* at least 1"),
        ({"fake": {"lr": -1}}, r"fake\.lr=-1.0: a learning rate is positive"),
        ({"student": {"betas": [0.9]}}, r"student\.betas=\(0.9,\): two numbers in \[0, 1\)"),
        ({"lora": {"rank": 0}}, r"lora\.rank=0, .* at least 1"),
        ({"batch": {"micro": 0}}, r"batch\.micro=0, .* at least 1"),
        ({"video": {"frames": 0}}, "video=.*frames=0.* at least 1"),
        ({"model": {"dtype": "int8"}}, r"model\.dtype='int8': choose float32, bfloat16 or float16"),
        ({"objective": {"fake_updates": 0}}, r"objective\.fake_updates=0: .* at least 1"),
        ({"parallel": {"zero_stage": 4}}, r"parallel\.zero_stage=4: choose 0 .*, 1 .*, 2 .* or 3"),
        ({"prompts": {"limit": -1}}, r"prompts\.limit=-1: .* 0 uses all"),
        ({"log": {"keep_checkpoints": 0}}, r"log\.keep_checkpoints=0: keep at least 1"),
        ({"log": {"sample_every": -1}}, r"log\..*sample_every=-1: .* 0 turns it off"),
        ({"log": {"teacher_steps": 0}}, r"log\..*teacher_steps=0: .* at least 1"),
        ({"seed": 2**64}, "seed=18446744073709551616: a seed lies between"),
        ({"log": {"seed": -(2**62)}}, r"log\.seed=-4611686018427387904: a seed lies between"),
        ({"student": {"weight_decay": -0.1}}, r"student\.weight_decay=-0.1: not negative"),
        ({"student": {"lr": 10**400}}, r"student\.lr=inf must be a finite number"),
        ({"objective": {"kind": ["tdm"]}}, r"objective\.kind=\['tdm'\]: choose one of 'dmd2'"),
        ({"objective": {"huber_c": 0}}, r"objective\.huber_c=0.0.* above 0"),
        ({"objective": {"margin_low": 1}}, r"objective\.margin_low=1.0.* less than 1"),
        ({"objective": {"cfg": 1e30}}, r"objective\.cfg=1e\+30.* at most 1000"),
        (
            {"parallel": {"timeout_minutes": 1e9}},
            r"parallel\.timeout_minutes=1000000000.0: .* of a year",
        ),
        ([1], r"some.json must hold a JSON object, not \[1\]"),
        ('{"steps": 1,\n "seed": }', "some.json, line 2: not JSON"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_its_value_and_the_rule(load, data, message):
    with pytest.raises(ValueError, match=message):
        load(data)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            {"grid": {"shift": 3}},
            (
                r"grid\.shift=3.0 does nothing to grid.kind='uniform': use kind 'shifted', or leave"
                r" it out"
            ),
        ),
        (
            {"grid": {"timesteps": [999]}},
            r"grid\.timesteps=\[999.0\] are of grid.kind='explicit', this is 'uniform'",
        ),
        (
            {"grid": {"kind": "explicit", "timesteps": [999, 499], "steps": 8}},
            r"grid\.steps=8 does nothing to the 2 listed timesteps: list as many",
        ),
        (
            {"grid": {"kind": "explicit", "timesteps": [999], "start": 0.5}},
            r"grid\.shift=1.0, start=0.5 do nothing to listed timesteps",
        ),
        (
            {"objective": {"distance": "l2", "huber_c": 0.1}},
            r"objective\.huber_c=0.1, distance='l2'",
        ),
        *(
            (
                {"objective": {"importance": "sum", **beside}},
                (
                    r"objective\.importance='sum': the exact target has no weights, and from a"
                    r" clean prediction all are 1"
                ),
            )
            for beside in (
                {"fake_target": "exact"},
                {"kind": "fisher"},
                {"kind": "dmd2"},
                {"match": "clean"},
                {"solver": "renoise"},
            )
        ),
        (
            {"objective": {"kind": "dmd2", "randmid": True}},
            r"objective\.randmid=true with segments='everywhere'",
        ),
        (
            {"student": {"algorithm": "sgd", "weight_decay": 0.1}},
            r"student\.weight_decay=0.1 with algorithm='sgd', which has none",
        ),
        (
            {"training": "full", "parallel": {"share_base": False}},
            "parallel.share_base=false with training='full'",
        ),
        (
            {"evaluate": {"config": "eval/configs/shapes.json"}},
            (
                r"evaluate\.config='eval/configs/shapes.json' with evaluate.program='', which reads"
                r" none"
            ),
        ),
    ],
    ids=str,
)
def test_a_setting_that_would_do_nothing_beside_another_is_refused(load, data, message):
    with pytest.raises(ValueError, match=message):
        load(data)


@pytest.mark.parametrize(
    "override, message",
    [
        ("steps", "--set 'steps': write --set a.b=value"),
        ("=3", "--set '=3': write"),
        ("steps.x=3", "--set 'steps.x=3': 'steps' is a value, not a group"),
        ("studnet.lr=1", "unknown setting 'studnet': did you mean 'student'"),
    ],
)
def test_a_wrong_override_is_named(load, override, message):
    with pytest.raises(ValueError, match=message):
        load({"steps": 5}, override)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="nothing.json' does not exist: the ready ones are in configs/"
    ):
        load_config(tmp_path / "nothing.json")


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "old.json").write_bytes('{"name": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match="old.json: not UTF-8"):
        load_config(tmp_path / "old.json")


def test_the_teacher_s_long_samples_have_the_shift_that_is_asked_for():
    flow, config = RectifiedFlow(), RunConfig(log=LogConfig(teacher_steps=4, teacher_shift=3.0))
    assert (
        reference_grid(config, flow)
        == shifted(4, 3.0, flow)
        != reference_grid(RunConfig(log=LogConfig(teacher_steps=4)), flow)
    )
    with pytest.raises(ValueError, match="log.teacher_shift=-1.0 is no flow shift"):
        reference_grid(RunConfig(log=LogConfig(teacher_shift=-1.0)), flow)
