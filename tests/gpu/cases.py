"""Runs to count on the simulated device, and the program that counts them.

    python tests/gpu/cases.py FILE NAME...

writes the counts of each run to a JSON object, by name. For a run that fails, it writes the error.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A shipped config with changes."""

    config: str
    changes: tuple[str, ...] = ()
    blocks: int = 2
    """Number of blocks; 0 for all."""
    what: str = "iteration"
    """Or "sharded", an iteration with DeepSpeed, "samples", generated and decoded by a run, or
    "stock", by the pipeline that users have.
    """


FAMILIES = {
    "cogvideox": "cogvideox2b_4nfe",
    "cogvideox-rotary": "cogvideox5b_4nfe",
    "wan": "wan1.3b_4nfe",
    "pixart": "pixart512_4nfe",
    "sd3": "sd3_4nfe",
    "flux1": "flux1_dev_4nfe",
    "flux2": "flux2_klein_4nfe",
    "qwen_image": "qwen_image_4nfe",
    "hunyuan_video": "hunyuan_video1.5_4nfe",
    "sd15": "sd15_4nfe",
    "sdxl": "sdxl_4nfe_512",
}
STARTED = {
    "cogvideox-image": "cogvideox5b_i2v_4nfe",
    "cogvideox1.5-image": "cogvideox1.5_5b_i2v_4nfe",
    "wan-image": "wan2.1_i2v_14b_4nfe",
    "wan-first-frame": "wan2.2_5b_i2v_4nfe",
}
"""Models that start from an image."""
EXPERTS = {"wan-experts": "wan2.2_a14b_4nfe", "wan-image-experts": "wan2.2_i2v_a14b_4nfe"}
"""Models with two experts."""
PLAIN = "parallel.gradient_checkpointing=false"
STOP = ("objective.rollout=stop", "objective.draws=own")
SHARED = ("parallel.sequence=4", "parallel.zero_stage=0")
LONG = ("sd15", "sdxl", "qwen_image", "flux1", "hunyuan_video")
"""Families that take two minutes or more with all blocks."""
QUICK = {
    **{name: Case(FAMILIES[name]) for name in ("cogvideox", "wan", "pixart", "sd3")},
    "cogvideox-stock": Case("cogvideox2b_4nfe", what="stock"),
}
SLOW = {
    **{name: Case(config) for name, config in FAMILIES.items() if name not in QUICK},
    **{name: Case(config) for name, config in (STARTED | EXPERTS).items()},
    "cogvideox-image-stock": Case("cogvideox5b_i2v_4nfe", what="stock"),
    "cogvideox-plain": Case("cogvideox2b_4nfe", (PLAIN,)),
    "cogvideox-shared": Case("cogvideox5b_4nfe", SHARED),
    "sd15-samples": Case("sd15_4nfe", ("log.sample_count=1",), what="samples"),
    "wan-shared": Case("wan1.3b_4nfe", SHARED),
    "hunyuan_video-shared": Case("hunyuan_video1.5_4nfe", SHARED),
    "cogvideox-stop": Case("cogvideox2b_4nfe", STOP),
    "cogvideox-full": Case("cogvideox2b_4nfe", ("training=full",)),
}
WHOLE = {
    **{
        f"{name}-whole": Case(config, blocks=0)
        for name, config in FAMILIES.items()
        if name not in LONG
    },
    "cogvideox-shared-whole": Case("cogvideox5b_4nfe", SHARED, blocks=0),
}
SHARDED = {
    f"zero{stage}": Case("cogvideox2b_4nfe", (f"parallel.zero_stage={stage}",), what="sharded")
    for stage in range(4)
}
CASES = QUICK | SLOW | WHOLE | SHARDED


def main() -> None:
    import pretended

    pretended.load()

    import json
    import os
    import sys
    import time
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    os.environ["HF_HUB_OFFLINE"] = "1"
    import self_check
    import stage

    out, results = Path(sys.argv[1]), {}
    for name in sys.argv[2:]:
        began = time.process_time()
        case = CASES.get(name)
        with pretended.pretend():
            results[name] = stage.attempt(case, out.parent) if case else self_check.FAULTS[name]()
        results[name]["processor_seconds"] = time.process_time() - began
    part = out.with_suffix(".part")
    part.write_text(json.dumps(results))
    part.replace(out)


if __name__ == "__main__":
    main()
