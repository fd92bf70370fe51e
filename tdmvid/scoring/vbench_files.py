"""Files that VBench 0.1.5 reads for each dimension from its cache folder, and their sources.

The package would download a missing file itself in the middle of a run, without asking. Therefore a
dimension is only started when all of its files exist (`--download` downloads them).
"""

from __future__ import annotations

import os
from pathlib import Path

from .preflight import Needed

_MODELS = "https://huggingface.co/OpenGVLab/VBench_Used_Models"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
_VIT_B = Needed(
    "clip_model/ViT-B-32.pt",
    f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)
_VIT_L = Needed(
    "clip_model/ViT-L-14.pt",
    f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)
_BERT = Needed(
    "huggingface/hub/models--bert-base-uncased",
    "https://huggingface.co/bert-base-uncased, with HF_HOME set to that huggingface/",
    url="hub:bert-base-uncased",
)
_GRIT = (
    Needed(
        "grit_model/grit_b_densecap_objectdet.pth",
        "https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth",
    ),
    Needed(
        "detectron2",
        "https://github.com/facebookresearch/detectron2, installed into the VBench environment",
        package=True,
        url="git+https://github.com/facebookresearch/detectron2",
    ),
    _BERT,
)
_VICLIP = (
    Needed(
        "ViCLIP/ViClip-InternVid-10M-FLT.pth",
        f"{_MODELS}/resolve/main/ViClip-InternVid-10M-FLT.pth",
    ),
    Needed(
        "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
        "https://github.com/openai/CLIP, clip/bpe_simple_vocab_16e6.txt.gz",
        url="https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
    ),
)
RAFT = Needed(
    "raft_model/models/raft-things.pth",
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip, unpacked",
    url="https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
)

_DINO = (
    Needed(
        "dino_model/dino_vitbase16_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ),
    Needed(
        "dino_model/facebookresearch_dino_main",
        "git clone https://github.com/facebookresearch/dino",
        url="git+https://github.com/facebookresearch/dino",
    ),
)

NEEDS: dict[str, tuple[Needed, ...]] = {
    "i2v_subject": _DINO,
    "i2v_background": (
        Needed(
            "dreamsim_model",
            "https://github.com/ssundaram21/dreamsim/releases, dreamsim_ensemble_checkpoint.zip,"
            " unpacked",
            url="https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/"
            "dreamsim_ensemble_checkpoint.zip",
        ),
    ),
    "camera_motion": (
        Needed(
            "cotracker_model/facebookresearch_co-tracker_main",
            "git clone https://github.com/facebookresearch/co-tracker",
            url="git+https://github.com/facebookresearch/co-tracker",
        ),
        Needed(  # what `cotracker2` of that repository's main branch loads
            "cotracker_model/scaled_offline.pth",
            "https://huggingface.co/facebook/cotracker3/resolve/main/scaled_offline.pth",
        ),
    ),
    "subject_consistency": _DINO,
    "background_consistency": (_VIT_B,),
    "motion_smoothness": (
        Needed(
            "amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"
        ),
    ),
    "dynamic_degree": (RAFT,),
    "aesthetic_quality": (
        _VIT_L,
        Needed(
            "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            "https://github.com/LAION-AI/aesthetic-predictor, sa_0_4_vit_l_14_linear.pth",
            url="https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/main/"
            "sa_0_4_vit_l_14_linear.pth",
        ),
    ),
    "imaging_quality": (
        Needed(
            "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
            "https://github.com/chaofengc/IQA-PyTorch/releases, v0.1-weights,"
            " musiq_spaq_ckpt-358bb6af.pth",
            url="https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/"
            "musiq_spaq_ckpt-358bb6af.pth",
        ),
    ),
    "object_class": _GRIT,
    "multiple_objects": _GRIT,
    "color": _GRIT,
    "spatial_relationship": _GRIT,
    "human_action": (
        Needed(
            "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
            f"{_MODELS}/resolve/main/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        ),
    ),
    "scene": (
        Needed(
            "caption_model/tag2text_swin_14m.pth",
            "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
        ),
        _BERT,
    ),
    "appearance_style": (_VIT_B,),
    "temporal_style": _VICLIP,
    "overall_consistency": _VICLIP,
}
"""Files by dimension. temporal_flickering needs none of its own, but VBench's protocol filters its
videos with RAFT, see `needs_of`.
"""


def needs_of(*, static_filter: bool) -> dict[str, tuple[Needed, ...]]:
    """Return the files that each dimension needs.

    Args:
        static_filter: Whether the videos of temporal_flickering are filtered.

    Returns:
        Files by dimension.
    """
    return NEEDS | ({"temporal_flickering": (RAFT,)} if static_filter else {})


def default_cache() -> Path:
    """Return the cache folder that the VBench package uses by default.

    Returns:
        VBENCH_CACHE_DIR, or ~/.cache/vbench.
    """
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
