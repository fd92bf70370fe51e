"""Score videos with the VBench package, in that package's own environment (eval/setup_vbench.sh).

    .venv-vbench/bin/python tdmvid/scoring/vbench_worker.py request.json

The request says which videos show which prompt, and for which dimensions they count; the scores
appear as <out>/<NAME>_eval_results.json, in the package's own layout. Nothing of tdmvid is
imported; as a script it has this folder first on its path, so no file here may be named as a
package that VBench imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

NAME = "scores"
STATIC_VIDEOS = 5  # of each prompt, that temporal_flickering is measured on


class NoVideoError(Exception):
    """The filter keeps no video at all: the package would divide by their number."""


def prepare(request: dict, out: Path) -> None:
    """Set the environment of the package's own loaders, before it is imported."""
    cache = Path(request["cache"])
    os.environ["VBENCH_CACHE_DIR"] = str(cache)
    os.environ["HF_HOME"] = str(cache / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    # AMT's checkpoint is a pickle; torch 2.6 and later refuse it.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    weights = cache / "dino_model" / "dino_vitbase16_pretrain.pth"
    if weights.is_file():  # DINO's own code looks for them in torch's folder, not in VBench's
        link = out / "torch" / "hub" / "checkpoints" / weights.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(weights.resolve())
        os.environ["TORCH_HOME"] = str(out / "torch")


def stage(request: dict, out: Path) -> list[dict]:
    """Link exactly the videos of the request into a fresh folder; return the entries, with the
    links for paths.

    The package lists its folder and takes the first name's suffix for all, and reuses clips that an
    earlier, broken run cut: so the folder holds the videos and nothing else.
    """
    folder = out / "videos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entries = []
    for entry in request["entries"]:
        links = []
        for path in map(Path, entry["video_list"]):
            link = folder / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
            links.append(str(link))
        entries.append(entry | {"video_list": links})
    return entries


def static_only(entries: list[dict], cache: Path, device) -> list[dict]:
    """Keep of each prompt of temporal_flickering the first videos without motion, by the package's
    own filter; others as they are.
    """
    import cv2
    import torch
    from vbench.cli.static_filter import StaticFilter

    class Filter(StaticFilter):
        def get_frames(self, video_path: str) -> list:
            """Return frames [1, 3, H, W] on this filter's device; the package's own are on CUDA
            wherever it runs.
            """
            video, frames = cv2.VideoCapture(video_path), []
            while True:
                success, frame = video.read()
                if not success:
                    break
                frames.append(
                    torch.from_numpy(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
                    .permute(2, 0, 1)
                    .float()[None]
                    .to(self.device)
                )
            video.release()
            return frames

    raft = argparse.Namespace(
        model=str(cache / "raft_model" / "models" / "raft-things.pth"),
        small=False,
        mixed_precision=False,
        alternate_corr=False,
    )
    judge, out = Filter(raft, device), []
    for entry in entries:
        if "temporal_flickering" in entry["dimension"]:
            static: list[str] = []
            for path in entry["video_list"]:
                if len(static) < STATIC_VIDEOS and judge.infer(path):
                    static.append(path)
            print(
                f"{len(static)} of {len(entry['video_list'])} videos of {entry['prompt_en']!r} are"
                " static",
                flush=True,
            )
            entry = entry | {"video_list": static}
        out.append(entry)
    return out


def clips_of(entries: list[dict], folder: Path) -> list[dict]:
    """Return the entries with the clips that VBench-Long has cut from their videos."""
    return [
        entry
        | {
            "video_list": [
                str(clip)
                for video in entry["video_list"]
                for clip in sorted((folder / "split_clip" / Path(video).stem).iterdir())
            ]
        }
        for entry in entries
    ]


def long_settings(request: dict, out: Path) -> dict:
    """Return VBench-Long's settings as its program has them by default: the wheel comes without
    their files.

    The weight of what is compared between clips is 0, so the tables that would map it are not used.
    """
    for name, content in (
        ("clip_length", request["clip_seconds"]),
        ("slow_fast", {}),
        ("mapping", {0.0: 0.0}),
    ):
        (out / f"{name}.yaml").write_text(
            "".join(f"{key}: {value}\n" for key, value in content.items()) or "{}\n"
        )
    return {
        "clip_length_config": str(out.resolve() / "clip_length.yaml"),
        "slow_fast_eval_config": str(out / "slow_fast.yaml"),
        "sb_mapping_file_path": str(out / "mapping.yaml"),
        "bg_mapping_file_path": str(out / "mapping.yaml"),
        "use_semantic_splitting": False,
        "sb_clip2clip_feat_extractor": "dino",
        "bg_clip2clip_feat_extractor": "clip",
        "w_inclip": 1.0,
        "w_clip2clip": 0.0,
        "dev_flag": False,
        "static_filter_flag": False,
    }


def score(request: dict, out: Path, entries: list[dict]) -> None:
    """Run the package on the entries."""
    import torch
    from vbench import VBench

    package: type = VBench
    settings: dict = {}
    if request["long"]:
        from vbench2_beta_long import VBenchLong

        package, settings = VBenchLong, long_settings(request, out)
    device, folder = torch.device(request["device"]), out / "videos"

    class Listed(package):
        def build_full_info_json(self, *args, **kwargs) -> str:
            """Write the request's own list: the package's silently leaves out videos that it does
            not find.
            """
            listed = clips_of(entries, folder) if request["long"] else entries
            if request["static_filter"]:
                listed = static_only(listed, Path(request["cache"]), device)
            path = out / f"{NAME}_full_info.json"
            path.write_text(json.dumps(listed))
            if not any(entry["video_list"] for entry in listed):
                raise NoVideoError
            return str(path)

    # VBench-Long looks up here how to cut a video.
    (out / "entries.json").write_text(json.dumps(entries))
    scorer = Listed(device, str(out / "entries.json"), str(out))
    mode = "long_vbench_standard" if request["long"] else "vbench_standard"
    try:
        scorer.evaluate(
            str(folder),
            NAME,
            dimension_list=request["dimensions"],
            local=True,
            mode=mode,
            imaging_quality_preprocessing_mode="longer",
            **settings,
        )
    except NoVideoError:
        (out / f"{NAME}_eval_results.json").write_text(
            json.dumps({name: [None, []] for name in request["dimensions"]})
        )


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}_eval_results.json").unlink(missing_ok=True)
    prepare(request, out)
    score(request, out, stage(request, out))


if __name__ == "__main__":
    main()
