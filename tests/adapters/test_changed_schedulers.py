"""The scheduler of a student is compared with what its export.json describes."""

import json

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from refusals import refused

from tdmvid.adapters.bundle import check_grid, check_scheduler
from tdmvid.backbones.flow import flow_scheduler_for
from tdmvid.backbones.scheduler import load_scheduler, scheduler_for, states_of
from tdmvid.diffusion.grid import explicit, shifted
from tdmvid.diffusion.process import RectifiedFlow, TabulatedVP

TIMES = [999, 856, 665, 399]


def published(folder, scheduler, timesteps):
    """Write what an export says about its scheduler."""
    scheduler.save_pretrained(folder)
    states = states_of(scheduler, len(timesteps))
    kind = {"name": type(scheduler).__name__, "states": states}
    facts = {"steps": len(timesteps), "timesteps": timesteps, "scheduler": kind}
    (folder / "export.json").write_text(json.dumps(facts))
    return folder


def table(folder):
    """A scheduler that lists timesteps and noise levels of a table."""
    stock = CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    process = TabulatedVP(stock.alphas_cumprod)
    return published(folder, scheduler_for(explicit(TIMES, process), process, stock), TIMES)


def euler(folder):
    """diffusers' scheduler of a flow."""
    process = RectifiedFlow(1000.0)
    grid = shifted(4, 3.0, process)
    timesteps = process.timestep(torch.tensor(grid.descending())).tolist()
    return published(folder, flow_scheduler_for(grid, process), timesteps)


@pytest.mark.parametrize(
    "write, changes, fact",
    [
        (table, {"trajectory": [999, 749, 499, 249]}, "749"),
        (table, {"sigmas": [1.0, 0.9, 0.8, 0.7]}, "noise levels"),
        (table, {"prediction_type": "sample"}, "prediction type"),
        (euler, {"shift": 1.0}, "timesteps"),
        (euler, {"invert_sigmas": True}, "timesteps"),
    ],
)
def test_any_change_that_changes_samples_is_refused(tmp_path, write, changes, fact):
    folder = write(tmp_path)
    check_scheduler(load_scheduler(folder), folder)
    file = folder / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with refused(file, fact):
        check_scheduler(load_scheduler(folder), folder)


def test_a_change_that_does_not_is_accepted(tmp_path):
    folder = table(tmp_path)
    file = folder / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_diffusers_version": "0.1"}))
    check_scheduler(load_scheduler(folder), folder)


def test_states_are_compared_only_if_the_export_lists_them(tmp_path):
    """An export of an earlier version has none."""
    folder = table(tmp_path)
    facts = json.loads((folder / "export.json").read_text())
    facts["scheduler"].pop("states")
    (folder / "export.json").write_text(json.dumps(facts))
    check_scheduler(load_scheduler(folder), folder)


def test_the_states_of_a_flow_follow_its_prediction(tmp_path):
    """With a constant velocity of 0.5, a state is 1 minus half of the time that has passed."""
    scheduler = flow_scheduler_for(shifted(2, 3.0, RectifiedFlow(1000.0)), RectifiedFlow(1000.0))
    assert states_of(scheduler, 2) == pytest.approx([1 - 0.5 * 0.25, 0.5], abs=1e-6)


def test_a_grid_is_compared_with_that_of_the_export_beside_it(tmp_path):
    check_grid(TIMES, tmp_path)
    folder = table(tmp_path)
    check_grid([float(time) for time in TIMES], folder)
    with refused("749", "856"):
        check_grid([999, 749, 499, 249], folder)
