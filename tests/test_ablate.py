"""The ablations resume, do not mix settings, and base their verdicts on the results."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import ablate
import pytest
import torch

from ablations.baseline import DMD2RatesSuite, DMD2Suite
from ablations.importance import ImportanceSuite
from ablations.labelled import Labelled, LabelledFakes, Rewarding
from ablations.networks import recall
from ablations.page import Axes, Claim, calls_to_reach, verdict, write_page
from ablations.rates import RatesSuite
from ablations.reward_rows import Few
from ablations.rewarded import FAVOURED, favoured, ring
from ablations.rewards import RewardsSuite, tilted
from ablations.shapes import BASE, ShapesSuite
from ablations.shapes import ROWS as SHAPES
from ablations.targets import TargetsSuite
from ablations.toy import Row, ToySuite, toy
from tdmvid.config import load_config
from tdmvid.diffusion.sampler import Solver
from tdmvid.plan.make import make_plan


@dataclass
class Small:
    """A suite of two rows whose single value is the seed. Counts the measurements."""

    value: int = 1
    measured: int = 0
    page, title, note, columns = "small.md", "Small", "A note.", {"a": "figure a"}
    axes = Axes()

    def settings(self):
        return {"suite": "small", "value": self.value}

    def rows(self):
        return [Row("one", "first", None), Row("two", "second", None)]

    def claims(self):
        return [Claim("first is lower", ("first", "a"), ("second", "a"))]

    def curves(self, results):
        return {}

    def sections(self, results):
        return ["A section."]

    def measure(self, row, seed):
        self.measured += 1
        return {"a": float(seed + 10 * (row.name == "second"))}


def test_a_second_start_measures_only_what_is_missing(tmp_path):
    suite = Small()
    ablate.run(suite, [0, 1], tmp_path)
    ablate.run(suite, [0, 1, 2], tmp_path)
    assert suite.measured == 6
    assert ablate.results(suite, tmp_path)["second"] == [{"a": 10.0}, {"a": 11.0}, {"a": 12.0}]


@pytest.mark.parametrize(
    "pages, page", [([], "out/small.md"), (["--pages", "elsewhere"], "elsewhere/small.md")]
)
def test_a_trial_does_not_replace_the_pages_of_docs(tmp_path, monkeypatch, pages, page):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate.ablations, "suite", lambda name, steps: Small())
    monkeypatch.setattr(
        ablate.ablations,
        "write_page",
        lambda path, suite, results, command: path.parent.mkdir(exist_ok=True) or path.touch(),
    )
    monkeypatch.setattr(
        sys, "argv", ["ablate.py", "--suite", "toy", "--seeds", "0", "--out", "out", *pages]
    )
    ablate.main()
    assert [str(found) for found in Path().rglob("*.md")] == [page]


def test_rows_are_compared_on_seeds_that_all_have(tmp_path):
    suite = Small()
    ablate.run(suite, [0, 1, 2], tmp_path)
    (tmp_path / "00_1.json").unlink()
    assert ablate.results(suite, tmp_path) == {
        "first": [{"a": 0.0}, {"a": 2.0}],
        "second": [{"a": 10.0}, {"a": 12.0}],
    }
    for path in (*tmp_path.glob("00_2*"), *tmp_path.glob("01_0*")):
        path.unlink()
    with pytest.raises(
        SystemExit,
        match=(
            "have no seed in common, but rows are compared seed by seed; run them with the same"
            " --seeds"
        ),
    ):
        ablate.results(suite, tmp_path)


def test_a_row_of_fewer_seeds_does_not_cut_the_others(tmp_path):
    suite = Small()
    suite.rows = lambda: [Row("one", "first", None), Few("two", "second", None)]
    ablate.run(suite, [3, 4, 5], tmp_path)
    found = ablate.results(suite, tmp_path)
    assert suite.measured == 5
    assert [seed["a"] for seed in found["first"]] == [3.0, 4.0, 5.0]
    assert [seed["a"] for seed in found["second"]] == [13.0, 14.0]
    assert verdict(suite.claims()[0], found) == "agrees"
    (tmp_path / "01_4.json").unlink()
    assert ablate.results(suite, tmp_path)["second"] == [{"a": 13.0}]


def test_some_rows_make_a_page_of_those(tmp_path):
    suite = Small()
    ablate.run(suite, [0, 1], tmp_path / "kept", ["second"])
    write_page(tmp_path / "small.md", suite, ablate.results(suite, tmp_path / "kept"), "python")
    text = (tmp_path / "small.md").read_text()
    assert suite.measured == 2 and "| two | second |" in text and "| one | first |" not in text
    with pytest.raises(
        SystemExit, match="--rows 'third' is not a row of this suite: choose from 'first', 'second'"
    ):
        ablate.run(suite, [0], tmp_path / "kept", ["third"])


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: row.name)
def test_every_row_of_the_shapes_suite_is_a_valid_run(row):
    config = load_config(Path("configs/shapes_4nfe.json"), [*BASE, *row.changes])
    assert set(row.solvers) <= set(get_args(Solver))
    assert set(row.steps) <= {config.grid.steps, *(config.objective.step_set or ())}


@pytest.mark.slow
def test_the_rows_of_the_shapes_suite_cost_different_calls():
    calls = {}
    for row in SHAPES:
        if row.name in ("TDM", "DMD2, 10 fake updates", "stream, shared draw"):
            config = load_config(Path("configs/shapes_4nfe.json"), [*BASE, *row.changes])
            calls[row.name] = make_plan(config).calls.forwards
    assert calls["stream, shared draw"] < calls["TDM"] < calls["DMD2, 10 fake updates"]


def test_the_rows_of_the_shapes_suite_are_run_and_shown(tmp_path, monkeypatch):
    suite = ShapesSuite(3)
    found = {"frechet/4/ddim": 0.5, "seconds": 2.0}
    monkeypatch.setattr(suite, "measure", lambda row, seed: found)
    ablate.run(suite, [0, 1], tmp_path, ["TDM", "match clean"])
    write_page(tmp_path / "page.md", suite, ablate.results(suite, tmp_path), "python")
    text = (tmp_path / "page.md").read_text()
    assert "| match | match clean | 0.500 ± 0.000 |" in text and "processor seconds" in text


def test_the_command_of_a_page_has_its_seeds_and_rows(tmp_path):
    suite = ShapesSuite(200)
    for row in ("TDM", "match clean"):
        number = [each.name for each in suite.rows()].index(row)
        for seed in (4, 11):
            (tmp_path / f"{number:02d}_{seed}.json").touch()
    assert ablate.command_of(suite, tmp_path) == (
        "python eval/ablate.py --suite shapes --seeds 4 11 --iterations 200 --rows TDM"
        " 'match clean'"
    )
    ablate.run(Small(), [0, 1], tmp_path / "small")
    whole = ablate.command_of(Small(), tmp_path / "small")
    assert whole == "python eval/ablate.py --suite small --seeds 0 1"


def test_results_of_other_settings_are_not_mixed(tmp_path):
    ablate.run(Small(), [0], tmp_path)
    with pytest.raises(SystemExit, match="choose another --out"):
        ablate.run(Small(value=2), [0], tmp_path)


def test_results_of_a_row_that_has_changed_are_not_taken_for_its_own(tmp_path):
    ablate.run(Small(), [0], tmp_path)
    changed = Small()
    changed.rows = lambda: [Row("one", "first", None), Row("two", "second", None, steps=(8,))]
    with pytest.raises(SystemExit, match="choose another --out"):
        ablate.run(changed, [0], tmp_path)


def test_the_page_holds_claims_and_rows(tmp_path):
    suite = Small()
    ablate.run(suite, [0, 1, 2], tmp_path / "kept")
    write_page(tmp_path / "small.md", suite, ablate.results(suite, tmp_path / "kept"), "python")
    text = (tmp_path / "small.md").read_text()
    assert "| first is lower | first 1.000 ± 1.000; second 11.000 ± 1.000 | agrees |" in text
    assert "| one | first | 1.000 ± 1.000 |" in text and "over 3 seeds" in text


def test_rows_with_fewer_seeds_say_how_many_they_have(tmp_path):
    results = {"first": [{"a": 1.0}, {"a": 3.0}], "second": [{"a": 2.0}]}
    write_page(tmp_path / "small.md", Small(), results, "python")
    text = (tmp_path / "small.md").read_text()
    assert "| figure a | seeds |" in text and "over the seeds of each row" in text
    assert "| one | first | 2.000 ± 1.414 | 2 |" in text and "| two | second | 2 | 1 |" in text


@pytest.mark.parametrize(
    "a, b, strict, expected",
    [
        ([1.0, 1.1, 0.9], [2.0, 2.0, 2.1], True, "agrees"),
        ([2.0, 2.0, 2.1], [1.0, 1.1, 0.9], True, "**contradicts**"),
        ([1.0, 2.0, 3.0], [1.1, 1.9, 3.0], True, "no clear difference"),
        ([1.0, 2.0, 3.0], [1.1, 1.9, 3.0], False, "no clear difference, so not contradicted"),
        (
            [1.0, 1.0, 1.0],
            [1.1, 1.2, 1.6],
            True,
            "no clear difference",
        ),  # two standard errors, and three seeds
        ([1.0], [2.0], True, "one seed only"),
    ],
)
def test_a_verdict_needs_its_interval_off_zero(a, b, strict, expected):
    results = {"a": [{"x": v} for v in a], "b": [{"x": v} for v in b]}
    assert verdict(Claim("", ("a", "x"), ("b", "x"), strict), results) == expected


def test_calls_to_reach_is_the_first_run_at_or_below_the_goal():
    reached, never = calls_to_reach(
        [[(10, 3.0), (20, 1.0), (30, 0.5)], [(10, 3.0)]], [[(50, 2.0), (100, 1.0)]] * 2
    )
    assert reached == 20 and never != never


def test_a_line_of_the_plot_joins_whole_runs_of_one_seed():
    suite = DMD2Suite()
    results = {
        "TDM": [{"calls": 7000.0, "4/ddim": 0.1}, {"calls": 7000.0, "4/ddim": 0.2}],
        "TDM, 60 iterations": [{"calls": 420.0, "4/ddim": 0.5}] * 2,
    }
    assert suite.curves(results) == {
        "TDM": [[(420.0, 0.5), (7000.0, 0.1)], [(420.0, 0.5), (7000.0, 0.2)]]
    }


def test_the_rate_chosen_is_that_of_the_lowest_mean():
    suite = DMD2RatesSuite()
    rows = {rate: f"dmd2, l2, uniform grid, lr {rate}" for rate in ("0.001", "0.003")}
    results = {
        rows["0.001"]: [{"4/renoise": d} for d in (0.10, 0.14, 0.12)],
        rows["0.003"]: [{"4/renoise": d} for d in (0.09, 0.13, 0.20)],
    }
    assert "| dmd2, l2, uniform grid | 0.001: 0.120, 0.003: 0.140 | 0.001 |" in suite.sections(
        results
    )


def test_dmd2_is_shown_at_the_rates_that_its_page_says_are_chosen():
    page, names = (
        Path("docs/ablations_dmd2_rates.md").read_text().partition("## All rows")[0],
        DMD2RatesSuite().methods(),
    )
    recipes = {
        row.recipe.iterations: row.recipe for row in DMD2Suite().rows() if row.curve == "DMD2"
    }
    for iterations, name in names.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert line.endswith(f" | {recipes[iterations].lr_student:g} |")


def test_recall_is_one_on_itself_and_small_where_a_mode_is_lost():
    data = toy.Mixture.circle().sample(1000, torch.Generator().manual_seed(0))
    right = data[data[:, 0] > 0]
    assert recall(data, data) == 1.0 and recall(right, data) < 0.7


@pytest.mark.parametrize(
    "kind, measured, figures",
    [
        (ToySuite, "TDM-unify", {"1/ddim", "8/ddim", "mass", "recall", "spikes", "calls"}),
        (RatesSuite, "dmd2, l2, lr 0.001", {"4/renoise"}),
        (DMD2Suite, "DMD2", {"4/renoise", "recall"}),
        (DMD2RatesSuite, "dmd2, l2, uniform grid, 4000 iterations, lr 0.001", {"4/renoise"}),
        (ImportanceSuite, "25 modes, 4 steps: sum", {"4/ddim", "state", "missing"}),
        (TargetsSuite, "flow: p = 1", {"4/ddim", "mass"}),
        (RewardsSuite, "radius 3, stream: lam 2", {"share", "rewarded", "others", "ess"}),
        (RewardsSuite, "radius 1.5, full, Re-DMD: lam 2", {"share", "ess"}),
        (RewardsSuite, "radius 1.5, stream, batch 16, divided by its mean: lam 2", {"share"}),
        (RewardsSuite, "radius 3, stream, two labelled fakes: lam 2", {"share", "ess"}),
        (RewardsSuite, "radius 1.5, TDM-R1: published settings", {"share", "precision"}),
    ],
)
@pytest.mark.slow
def test_the_claims_of_a_suite_speak_of_its_rows_and_these_can_be_measured(kind, measured, figures):
    suite = kind(3)
    suite.count = suite.shares = 2000
    names = [row.name for row in suite.rows()]
    assert len(names) == len(set(names)) >= 6
    assert {row for claim in suite.claims() for row, _ in (claim.better, claim.worse)} <= set(names)
    row = next(row for row in suite.rows() if row.name == measured)
    row = replace(row, recipe=replace(row.recipe, iterations=3))  # the longest row has 4,000
    assert figures <= suite.measure(row, 0).keys()


def test_a_missing_mode_is_counted_and_its_mass_too():
    suite = ToySuite(3)
    recipe, mixture = suite.base, toy.Mixture.circle()

    class Right:
        """Samples of the modes on the right only."""

        process = suite.process

        def __call__(self, x_t, t, cond):
            data = mixture.sample(6 * len(x_t), torch.Generator().manual_seed(0))
            return data[data[:, 0] > 0.5][: len(x_t)]

    figures = suite._modes(Right(), recipe, "ddim")
    assert figures["missing"] == 5 and figures["mass"] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("radius", [1.5, 3.0])
def test_the_reward_of_the_mixture_favours_whole_modes(radius):
    mixture = ring(radius)
    data = mixture.sample(4000, torch.Generator().manual_seed(0))
    mode = torch.cdist(data, mixture.means).argmin(1)
    found = favoured(data, [""] * 4000)
    assert torch.equal(found, torch.isin(mode, torch.tensor(FAVOURED)).double())
    assert float(mixture.weights[list(FAVOURED)].sum()) == pytest.approx(0.35)


def test_what_arrives_of_a_reward_is_the_change_of_the_log_odds():
    """Odds of 7 to 13 times e^2 are a share of 0.799; half of it is an arriving part of 0.5."""
    assert tilted(0.35, 2) == pytest.approx(0.799, abs=1e-3)
    suite, name = RewardsSuite(), "radius 3, stream"
    results = {
        f"{name}: lam 0": [{"share": 0.35}],
        f"{name}: lam 2": [{"share": tilted(0.35, 1)}],
        f"{name}, exact target: lam 0": [{"share": 0.2}],
        f"{name}, exact target: lam 2": [{"share": tilted(0.2, 2)}],
    }
    results[f"{name}, strength / 0.6: lam 2"] = [{"share": tilted(0.35, 2)}]
    results["radius 1.5, stream: lam 2"] = [{"share": 0.5}]  # without its row of lam 0
    text = "\n".join(suite.sections(results))
    assert results[f"{name}, strength / 0.6: lam 2"][0]["arriving"] == pytest.approx(1.0)
    assert results[f"{name}: lam 2"][0]["arriving"] == pytest.approx(0.5)
    assert results[f"{name}, exact target: lam 2"][0]["arriving"] == pytest.approx(1.0)
    assert f"| {name} |" in text and "0.500" in text


@pytest.mark.slow
def test_labelled_fakes_learn_plain_and_weighted_samples_under_their_labels():
    """With label A the optimum is the mean of the samples at tau = 1, with B the weighted mean."""
    suite = RewardsSuite()
    recipe = replace(suite._as(Labelled), iterations=200, lr_fake=1e-2)
    start = toy.VelocityNetwork(suite.process, width=recipe.width)
    fakes, draws = LabelledFakes(start, recipe), torch.Generator().manual_seed(0)
    for _ in range(recipe.iterations):
        right = torch.rand(256, generator=draws) < 0.5
        samples = torch.where(right[:, None], 1.0, -1.0).expand(256, 2)
        weight = torch.where(right, 0.2, 1.8)
        fakes.engine.backward(fakes.loss(samples, weight, draws))
        fakes.engine.step()
    noise, last = torch.randn(512, 2, generator=draws), torch.ones(512)
    teacher = toy.ExactDenoiser(toy.Mixture.circle(), suite.process)
    rewarding = Rewarding(teacher, fakes.network)
    moved = (rewarding(noise, last, toy.NULL) - teacher(noise, last, toy.NULL)).mean(0)  # A - B
    torch.testing.assert_close(moved, torch.full((2,), 0.8), atol=0.15, rtol=0)
