"""Distil a teacher into a few-step student.

python launch/train.py --config configs/shapes_4nfe.json
deepspeed launch/train.py --config configs/shapes_4nfe.json
python launch/train.py --config configs/shapes_4nfe.json --set steps=2 --out runs/smoke
python launch/train.py --config configs/shapes_4nfe.json --plan --ranks 8 --device-memory 80
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdmvid.config.run import RunConfig, load_config  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "CROSS_RANK",
    "CROSS_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What launchers tell their processes about each other, and evaluation must not take for its own.
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="a JSON run, e.g. configs/shapes_4nfe.json"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override one setting; may be given again",
    )
    parser.add_argument("--out", help="run folder (default runs/<name>)")
    parser.add_argument(
        "--resume", default="", help="'auto' (newest whole checkpoint) or a checkpoint folder"
    )
    parser.add_argument("--plan", action="store_true", help="print what the run would do and stop")
    parser.add_argument("--ranks", type=int, default=1, help="ranks that --plan plans for")
    parser.add_argument(
        "--device-memory",
        type=float,
        default=0.0,
        metavar="GIB",
        help="memory of a rank's device: --plan refuses what does not fit",
    )
    parser.add_argument(
        "--local_rank", type=int, help=argparse.SUPPRESS
    )  # the deepspeed launcher passes it
    return parser.parse_args()


def leave(status: int) -> int:
    """The exit status of a stopped run: a launcher would report every status as a failure, so a
    file can take its place.
    """
    marker = os.environ.get("TDMVID_STOPPED")
    if not marker:
        return status
    Path(marker).touch()
    return 0


def evaluation(config: RunConfig, ranks: int) -> list[str]:
    """The command that scores a finished run, on the ranks of this machine; empty if the config
    asks for none.
    """
    wanted, folder = config.evaluate, config.folder
    if not wanted.program:
        return []
    program = str(ROOT / "eval" / f"{wanted.program}_run.py")
    if wanted.program == "shapes":
        return [sys.executable, program, "--run", str(folder)]
    if not Path(wanted.config).is_file():
        raise ValueError(
            f"evaluate.config={wanted.config!r} does not exist: the ready ones are in eval/configs/"
        )
    start = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        if ranks > 1
        else []
    )
    student = folder / ("lora" if config.training == "lora" else "student")
    return [sys.executable, *start, program, "--config", wanted.config, "--lora", str(student)]


def alone() -> dict[str, str]:
    """The environment without what a launcher put there."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in LAUNCHER and not key.startswith(("TORCHELASTIC", "ROLE_"))
    }


def preflight(config: RunConfig) -> None:
    """ValueError, before days of training, if the evaluation at the end lacks its environment or
    cannot read its config.
    """
    if config.evaluate.program not in ("vbench", "image") or os.environ.get("RANK", "0") != "0":
        return
    command = [*evaluation(config, ranks=1), "--preflight"]
    done = subprocess.run(command, env=alone(), capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().split("\n")[-1].removeprefix("error: ")
        raise ValueError(
            f"evaluate.config={config.evaluate.config!r}, which the end of the run needs: {said}"
        )


def evaluate(config: RunConfig) -> None:
    """Score the finished run from its first rank, in processes of their own: the others have ended,
    their GPUs are free.
    """
    command = evaluation(
        config, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    )
    if not command or os.environ.get("RANK", "0") != "0":
        return
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # what the run held on this rank's GPU
    print(f"evaluation: {shlex.join(command)}", flush=True)
    done = subprocess.run(command, env=alone())
    if done.returncode:
        raise RuntimeError(
            f"the run is finished, but its evaluation ended with {done.returncode}; once that is"
            f" mended: {shlex.join(command)}"
        )


def main() -> None:
    args = arguments()
    overrides = args.set + ([f"out={json.dumps(args.out)}"] if args.out else [])
    try:
        config = load_config(args.config, overrides)
        evaluation(config, ranks=1)  # what the end of the run needs is refused at its start
        if args.plan:
            from tdmvid.plan.plan import check_fit, describe, make_plan

            plan = make_plan(config, ranks=args.ranks)
            print(describe(plan, device_memory=args.device_memory))
            if args.device_memory:
                check_fit(plan, args.device_memory)
            return
        preflight(config)
        from tdmvid.train.signals import STOPPED, Interrupted
        from tdmvid.train.trainer import train

        command = shlex.join(["python", "launch/train.py", *sys.argv[1:]])
        try:
            train(config, resume=args.resume, commands={"train": command})
            evaluate(config)
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(leave(STOPPED))
    except KeyboardInterrupt:
        print("interrupted: a run that has checkpoints goes on with --resume auto", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit("error: " + " ".join(str(error).split("\n")))


if __name__ == "__main__":
    main()
