"""Package metadata; the tested versions are the lower bounds and those of constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

QUANTIZE = ["torchao>=0.18,<0.19"]

setup(
    name="tdmvid",
    version="0.1.0",
    description="Distil video diffusion models into four steps by Trajectory Distribution Matching",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["tdmvid", "tdmvid.*"]),
    entry_points={"console_scripts": ["tdmvid = tdmvid.cli.main:main"]},
    package_data={
        "tdmvid.report": ["*.j2"],
        "tdmvid.scoring": ["*.j2"],
        "tdmvid.backbones": ["architectures/*/*.json", "architectures/*/*/*.json"],
    },
    install_requires=[
        "torch>=2.10,<2.16",
        "diffusers>=0.42,<0.43",
        "transformers>=5.0,<6",
        "peft>=0.21,<0.22",
        "accelerate>=1.10,<2",
        "deepspeed>=0.19,<0.20",
        "safetensors>=0.5,<1",
        "sentencepiece>=0.2,<0.3",
        "protobuf>=5,<8",
        "datasets>=4,<6",
        "av>=14,<19",
        "decord>=0.6,<0.7; platform_machine == 'x86_64'",
        "numpy>=2,<3",
        "scipy>=1.13,<2",
        "pillow>=11,<14",
        "jinja2>=3.1,<4",
        "tensorboard>=2.18,<3",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "test": ["pytest>=8,<10", *QUANTIZE],
        "plot": ["matplotlib>=3.10,<4"],
        "quantize": QUANTIZE,
        "xformers": ["xformers>=0.0.35,<0.1"],
        "image-metrics": [
            "torch-fidelity>=0.4,<0.5",
            "open-clip-torch>=3.3,<4",
            "lpips>=0.1.4,<0.2",
        ],
        # Pins an old stack: it has an environment of its own, which eval/setup_vbench.sh makes.
        "vbench": ["vbench==0.1.5"],
    },
)
