"""A config file defines one run, and errors give the dotted path of the setting."""

import dataclasses
import json
from pathlib import Path

import pytest
from refusals import refused

from tdmvid.config import (
    ImageConfig,
    LogConfig,
    RunConfig,
    VBenchConfig,
    from_dict,
    load_config,
    to_dict,
)
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.grids import reference_grid

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
    """Return `load(data, *overrides)`, which writes the data to a file and loads it."""

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
    with refused(f"name={name!r}"):
        load({"name": name})


def test_the_name_is_the_file_s_unless_given(load):
    assert (
        load({}).name == "some"
        and load({"name": "other"}).folder == Path("runs/other")
        and load({}, "out=here").folder == Path("here")
    )


HOME = "~/a"
OF_A_RUN = {
    "out": HOME,
    "init": HOME,
    "model": {"path": HOME, "adapters": [{"path": HOME, "path_2": HOME}]},
    "prompts": {"path": HOME, "cache": HOME, "images": HOME},
    "rewards": [{"function": "votes", "model": HOME}],
    "log": {"sample_prompts": ["a"], "sample_images": [HOME]},
    "evaluate": {"program": "vbench", "config": HOME},
}
OF_VBENCH = dict.fromkeys(("augmented", "embeddings", "environment", "cache"), HOME)


@pytest.mark.parametrize(
    "kind, data, paths",
    [
        (RunConfig, OF_A_RUN, 11),
        (RunConfig, {"objective": {"kind": "gan"}, "real": {"path": HOME, "cache": HOME}}, 2),
        (VBenchConfig, OF_VBENCH | {"model": {"path": HOME}}, 5),
        (VBenchConfig, {"suite": "i2v", "images": HOME}, 1),
        (VBenchConfig, {"prompts": HOME}, 1),
        (ImageConfig, dict.fromkeys(("prompts", "reference", "embeddings", "cache"), HOME), 4),
    ],
)
def test_every_path_may_begin_in_the_home_folder(kind, data, paths, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = json.dumps(to_dict(from_dict(kind, data)))
    assert text.count('"/home/me/a"') == json.dumps(data).count(HOME) == paths and "~" not in text


def test_a_tilde_stays_in_a_text_that_is_no_path():
    texts = {"notes": ["~/a"], "log": {"sample_prompts": ["~/a"]}, "prompts": {"negative": "~/a"}}
    data = texts | {"model": {"path": "a~/b"}, "out": "~a/b", "objective": {"cfg": 2.0}}
    assert json.dumps(to_dict(from_dict(RunConfig, data))).count("~") == 5


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
    "data, setting, near",
    [
        ({"objectve": {"cfg": 1}}, "objectve", "'objective'"),
        ({"student": {"lrr": 1}}, "student.lrr", "'lr'"),
        ({"grid": {"zzz": 1}}, "grid.zzz", "kind, steps, start"),
    ],
    ids=str,
)
def test_an_unknown_setting_is_named_with_those_that_are_near(load, data, setting, near):
    with refused(f"'{setting}'", near):
        load(data)


@pytest.mark.parametrize(
    "data, fact",
    [
        ({"steps": "many"}, "steps='many'"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"steps": True}, "steps=True"),
        ({"parallel": {"gradient_checkpointing": "True"}}, "write true or false"),
        ({"parallel": {"compile": "True"}}, "'auto', true, false"),
        ({"student": {"lr": "1e-4"}}, "student.lr='1e-4'"),
        ({"parallel": {"compile": 1}}, "parallel.compile=1"),
        ({"name": 2024}, """--set 'name="2024"'"""),
        ({"student": 3}, "student"),
        ({"lora": {"targets": "to_q"}}, "lora.targets='to_q'"),
        ({"lora": {"targets": ["to_q", 3]}}, "lora.targets[1]=3"),
        ({"grid": {"kind": "unifrom"}}, "grid.kind='unifrom'"),
        ({"objective": {"huber_c": "x"}}, "objective.huber_c='x'"),
        ('{"ema": NaN}', "ema=nan"),
        ('{"student": {"lr": Infinity}}', "student.lr=inf"),
        ({"steps": 0}, "steps=0"),
        ({"ema": 1}, "ema=1.0"),
        ({"max_bad_steps": 0}, "max_bad_steps=0"),
        ({"fake": {"lr": -1}}, "fake.lr=-1.0"),
        ({"student": {"betas": [0.9]}}, "student.betas=[0.9]"),
        ({"lora": {"rank": 0}}, "lora.rank=0"),
        ({"batch": {"micro": 0}}, "batch.micro=0"),
        ({"video": {"frames": 0}}, "video.frames=0"),
        ({"model": {"dtype": "int8"}}, "model.dtype='int8'"),
        ({"objective": {"fake_updates": 0}}, "objective.fake_updates=0"),
        ({"parallel": {"zero_stage": 4}}, "parallel.zero_stage=4"),
        ({"parallel": {"zero_stage": 0, "offload": "optimizer"}}, "parallel.offload='optimizer'"),
        ({"parallel": {"backend": "none", "offload": "all"}}, "parallel.offload='all'"),
        ({"prompts": {"limit": -1}}, "prompts.limit=-1"),
        ({"log": {"keep_checkpoints": 0}}, "log.keep_checkpoints=0"),
        ({"log": {"sample_every": -1}}, "sample_every=-1"),
        ({"log": {"teacher_steps": 0}}, "teacher_steps=0"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"log": {"seed": -(2**62)}}, "log.seed=-4611686018427387904"),
        ({"student": {"weight_decay": -0.1}}, "student.weight_decay=-0.1"),
        ({"student": {"lr": 10**400}}, "student.lr=inf"),
        ({"objective": {"kind": ["tdm"]}}, "objective.kind=['tdm']"),
        ({"objective": {"huber_c": 0}}, "objective.huber_c=0.0"),
        ({"objective": {"margin_low": 1}}, "objective.margin_low=1.0"),
        ({"objective": {"cfg": 1e30}}, "objective.cfg=1e+30"),
        ({"parallel": {"timeout_minutes": 1e9}}, "parallel.timeout_minutes=1000000000.0"),
        ([1], "some.json"),
        ('{"steps": 1,\n "seed": }', "some.json, line 2"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_with_its_value(load, data, fact):
    with refused(fact):
        load(data)


@pytest.mark.parametrize(
    "data, facts",
    [
        ({"grid": {"shift": 3}}, ("grid.shift=3.0", "grid.kind='uniform'", "'shifted'")),
        ({"grid": {"timesteps": [999]}}, ("grid.timesteps=[999.0]", "grid.kind='explicit'")),
        (
            {"grid": {"kind": "explicit", "timesteps": [999, 499], "steps": 8}},
            ("grid.steps=8", "timesteps"),
        ),
        (
            {"grid": {"kind": "explicit", "timesteps": [999], "start": 0.5}},
            ("start=0.5", "timesteps"),
        ),
        (
            {"objective": {"distance": "l2", "huber_c": 0.1}},
            ("objective.huber_c=0.1", "distance='l2'"),
        ),
        *(
            ({"objective": {"importance": "sum", **beside}}, ("objective.importance='sum'",))
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
            ("objective.randmid=true", "segments='everywhere'"),
        ),
        (
            {"student": {"algorithm": "sgd", "weight_decay": 0.1}},
            ("student.weight_decay=0.1", "algorithm='sgd'"),
        ),
        (
            {"training": "full", "parallel": {"share_base": False}},
            ("parallel.share_base=false", "training='full'"),
        ),
        ({"real": {"path": "clips"}}, ("real.path='clips'", "objective.kind='tdm'", "'gan'")),
        ({"real": {"limit": 3}}, ("real.limit=3", "objective.kind='tdm'")),
        ({"discriminator": {"lr": 0.1}}, ("discriminator.lr=0.1", "objective.kind='tdm'")),
        (
            {"objective": {"k_condition": False}},
            ("objective.k_condition=false", "objective.step_set"),
        ),
        (
            {"objective": {"importance": "none", "fake_target": "exact"}},
            ("objective.importance='none'", "objective.fake_target='exact'"),
        ),
        *(
            (
                {"objective": {"rollout": "full"}, "rewards": [{"function": "motion", **own}]},
                (f"{next(iter(own))}=", "normalise='none'"),
            )
            for own in ({"floor": 0.1}, {"deviation_prompts": 4}, {"deviation_samples": 4})
        ),
        (
            {"evaluate": {"config": "eval/configs/shapes.json"}},
            ("evaluate.config='eval/configs/shapes.json'", "evaluate.program=''"),
        ),
    ],
    ids=str,
)
def test_a_setting_that_would_do_nothing_beside_another_is_refused(load, data, facts):
    with refused(*facts):
        load(data)


@pytest.mark.parametrize(
    "override, facts",
    [
        ("steps", ("--set 'steps'", "--set a.b=value")),
        ("=3", ("--set '=3'",)),
        ("steps.x=3", ("--set 'steps.x=3'", "'steps'")),
        ("studnet.lr=1", ("'studnet'", "'student'")),
        ("name=1e5", ("""--set 'name="..."'""",)),
        ("student.betas.0=1", ("'betas' is a list", "--set 'student.betas=[...]'")),
    ],
)
def test_a_wrong_override_is_named(load, override, facts):
    with refused(*facts):
        load({"steps": 5, "student": {"betas": [0, 0.9]}}, override)


def test_a_missing_file_is_named(tmp_path):
    with refused("nothing.json", "shapes_4nfe"):
        load_config(tmp_path / "nothing.json")


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "old.json").write_bytes('{"name": "é"}'.encode("latin-1"))
    with refused("old.json", "UTF-8"):
        load_config(tmp_path / "old.json")


def test_the_teacher_s_long_samples_have_the_shift_that_is_asked_for():
    flow, config = RectifiedFlow(), RunConfig(log=LogConfig(teacher_steps=4, teacher_shift=3.0))
    assert (
        reference_grid(config, flow)
        == shifted(4, 3.0, flow)
        != reference_grid(RunConfig(log=LogConfig(teacher_steps=4)), flow)
    )
    with refused("log.teacher_shift=-1.0"):
        reference_grid(RunConfig(log=LogConfig(teacher_shift=-1.0)), flow)
