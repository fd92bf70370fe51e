"""Score videos with the VBench package, in that package's own environment (eval/setup_vbench.sh).

    .venv-vbench/bin/python tdmvid/scoring/vbench_worker.py request.json

The request lists the videos of each prompt and the dimensions to score. The scores are written to
<out>/<NAME>_eval_results.json in the package's own format. Nothing of tdmvid is imported. When run
as a script this folder is first on sys.path, so no file here may have the name of a package that
VBench imports.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import types
from pathlib import Path

NAME = "scores"
STATIC_VIDEOS = 5  # videos per prompt that temporal_flickering is measured on


class NoVideoError(Exception):
    """The filter keeps no video. The package would divide by zero."""


def prepare(request: dict, out: Path) -> None:
    """Set environment variables for the package's loaders before it is imported.

    Args:
        request: The request.
        out: Folder of the results.
    """
    cache = Path(request["cache"])
    os.environ["VBENCH_CACHE_DIR"] = str(cache)
    os.environ["HF_HOME"] = str(cache / "huggingface")
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    # AMT's checkpoint is a pickle, which torch 2.6 and later reject by default.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    # torch.hub looks for these in torch's cache folder, not in VBench's.
    hub, tracker = out / "torch" / "hub", cache / "cotracker_model"
    weights = [cache / "dino_model" / "dino_vitbase16_pretrain.pth", *tracker.glob("*.pth")]
    links = {hub / "checkpoints" / path.name: path for path in weights}
    code = tracker / "facebookresearch_co-tracker_main"
    links[hub / code.name] = code
    for link, path in links.items():
        if path.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
            os.environ["TORCH_HOME"] = str(out / "torch")


def stage(request: dict, out: Path) -> list[dict]:
    """Link exactly the videos of the request into a new folder.

    The package lists its folder, takes the suffix of the first name for all files, and reuses clips
    that an earlier, broken run has cut. Therefore the folder must contain nothing else.

    Args:
        request: The request.
        out: Folder of the results.

    Returns:
        The entries, with links as paths.
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
    """Keep only the first static videos of each prompt of temporal_flickering, using the package's
    own filter.

    Args:
        entries: Prompts and their videos.
        cache: VBench's cache folder.
        device: Device of the filter.

    Returns:
        The entries. Those of other dimensions are unchanged.
    """
    import cv2
    import torch
    from vbench.cli.static_filter import StaticFilter

    class Filter(StaticFilter):
        def get_frames(self, video_path: str) -> list:
            """Return frames [1, 3, H, W] on this filter's device. The package's own method always
            returns them on CUDA.
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
    """Replace videos by the clips that VBench-Long has cut from them.

    Args:
        entries: Prompts and their videos.
        folder: Folder of the videos.

    Returns:
        The entries with paths of clips.
    """
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
    """Return the default settings of VBench-Long's program. The wheel lacks their files, so they
    are written.

    The weight of comparisons between clips is 0, so the tables that map them are not used.

    Args:
        request: The request.
        out: Folder to write the files to.

    Returns:
        Keyword arguments of the package.
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


def image_package(request: dict) -> type:
    """Return the class of VBench-I2V, prepared to run from local files on the request's device.

    Args:
        request: The request.

    Returns:
        The class.
    """
    # The wheel lacks this module. camera_motion imports it, and uses it only to draw tracks.
    absent = types.ModuleType("vbench2_beta_i2v.third_party.cotracker.utils.visualizer")
    absent.Visualizer = None  # type: ignore[attr-defined]
    sys.modules[absent.__name__] = absent
    from vbench2_beta_i2v import VBenchI2V

    if "i2v_background" in request["dimensions"]:
        # It calls dreamsim without a device, which means CUDA, and downloads to ./models.
        from vbench2_beta_i2v import i2v_background

        i2v_background.dreamsim = functools.partial(
            i2v_background.dreamsim,
            device=request["device"],
            cache_dir=str(Path(request["cache"]) / "dreamsim_model"),
        )
    return VBenchI2V


def score(request: dict, out: Path, entries: list[dict]) -> None:
    """Run the package on the entries and write its results.

    Args:
        request: The request.
        out: Folder of the results.
        entries: Prompts and their linked videos.
    """
    import torch
    from vbench import VBench

    package: type = VBench
    settings: dict = {}
    if request["long"]:
        from vbench2_beta_long import VBenchLong

        package, settings = VBenchLong, long_settings(request, out)
    elif request["suite"] == "i2v":
        package = image_package(request)
    device, folder = torch.device(request["device"]), out / "videos"

    class Listed(package):
        def build_full_info_json(self, *args, **kwargs) -> str:
            """Write the request's own list. The package's own method silently leaves out videos
            that it does not find.
            """
            listed = clips_of(entries, folder) if request["long"] else entries
            if request["static_filter"]:
                listed = static_only(listed, Path(request["cache"]), device)
            path = out / f"{NAME}_full_info.json"
            path.write_text(json.dumps(listed))
            if not any(entry["video_list"] for entry in listed):
                raise NoVideoError
            return str(path)

    # VBench-Long reads from this file how to cut a video.
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
    """Score the videos of the request given on the command line."""
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}_eval_results.json").unlink(missing_ok=True)
    prepare(request, out)
    score(request, out, stage(request, out))


if __name__ == "__main__":
    main()
