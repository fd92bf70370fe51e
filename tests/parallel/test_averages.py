"""A sharded student uses its averaged weights without any rank holding all of them."""

import copy

import pytest
import torch
from ranks import run_ranks

WIDTH, LAYERS = 8, 4


def sampled(stage: int, threshold: int) -> dict:
    """Return outputs with own, averaged and own weights again, their expected values, and the
    largest number of values that a rank held.
    """
    import deepspeed

    from tdmvid.config import OptimConfig
    from tdmvid.parallel import deepspeed_engine, launch

    launch.start("deepspeed", timeout_minutes=0.5)
    torch.manual_seed(0)
    network = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    plain = copy.deepcopy(network)
    engine = deepspeed_engine.DeepSpeedEngine(
        network,
        OptimConfig(lr=0.1),
        total_steps=1,
        micro_batch=2,
        ema=0.5,
        zero_stage=stage,
        persistence_threshold=threshold,
    )
    x = torch.randn(2, WIDTH)
    engine.backward(engine(x).square().mean())
    assert engine.step().applied
    expected = {}
    for averaged in (False, True):
        plain.load_state_dict(engine.weights(averaged=averaged))
        expected[averaged] = plain(x).detach()

    whole, gathered = [], deepspeed.zero.GatheredParameters

    def counted(parameters, *args, **options):
        parameters = list(parameters)
        whole.append(sum(p.ds_numel for p in parameters if hasattr(p, "ds_numel")))
        return gathered(parameters, *args, **options)

    def refuse(*_):
        raise AssertionError("whole on every rank")

    deepspeed.zero.GatheredParameters, deepspeed_engine.gather_everywhere = counted, refuse
    with torch.no_grad():
        before = engine(x)
        with engine.averaged():
            inside = engine(x)
        after = engine(x)
    first = sorted(engine.weights(averaged=True, everywhere=False))
    launch.finish()
    same = (
        torch.equal(before, after),
        (before - expected[False]).abs().max().item(),
        (inside - expected[True]).abs().max().item(),
    )
    return {
        "same": same,
        "moved": (expected[True] - expected[False]).abs().max().item(),
        "whole": max(whole),
        "weights": len(first),
    }


@pytest.mark.parametrize("stage, threshold", [(3, 0), (3, 10), (3, 100_000), (2, 0)])
@pytest.mark.slow
def test_the_average_is_put_in_one_tensor_at_a_time(stage, threshold):
    for rank, found in enumerate(run_ranks(2, sampled, stage, threshold)):
        unmoved, own, average = found["same"]
        assert unmoved and own < 1e-6 and average < 1e-6 and found["moved"] > 1e-3
        assert found["whole"] <= WIDTH * WIDTH
        assert found["weights"] == (0 if rank else 2 * LAYERS)
