"""Package metadata; the lowest and the newest tested versions are in constraints*.txt."""

from pathlib import Path

from setuptools import find_packages, setup

QUANTIZE = ["torchao>=0.18,<0.19"]
TEST = [
    "pytest>=8.2,<10",
    "pytest-xdist>=3.6,<4",
    "nbclient>=0.10,<0.12",
    "ipykernel>=6.29,<8",
    *QUANTIZE,
]
DOCS = ["mkdocs>=1.6.1,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0.8,<2"]

setup(
    name="tdmvid",
    version="0.2.0",
    description="Distil video diffusion models into four steps by Trajectory Distribution Matching",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["tdmvid", "tdmvid.*"]),
        "tdmvid.configs",
        "tdmvid.configs.prompts",
        "tdmvid.configs.evaluation",
        "tdmvid.slurm",
    ],
    # These folders are at the top of the repository and are packaged from there.
    package_dir={
        "tdmvid.configs": "configs",
        "tdmvid.configs.prompts": "configs/prompts",
        "tdmvid.configs.evaluation": "eval/configs",
        "tdmvid.slurm": "launch/slurm",
    },
    package_data={
        "tdmvid": ["py.typed"],
        "tdmvid.configs": ["*.json"],
        "tdmvid.configs.prompts": ["*.txt"],
        "tdmvid.configs.evaluation": ["*.json", "*.txt"],
        "tdmvid.slurm": ["*.sh", "*.sbatch"],
        "tdmvid.report": ["*.j2"],
        "tdmvid.scoring": ["*.j2", "environment/*.sh", "environment/*.txt"],
        "tdmvid.backbones": ["architectures/*/*.json", "architectures/*/*/*.json"],
        "tdmvid.shapes": [
            "*.safetensors",
            "*.txt",
            "teacher/*.json",
            "teacher/*.md",
            "teacher/*/*.json",
            "teacher/*/*.safetensors",
        ],
    },
    entry_points={"console_scripts": ["tdmvid = tdmvid.cli.main:main"]},
    install_requires=[
        "torch>=2.10,<2.16",
        "diffusers>=0.42,<0.43",
        "transformers>=5.3,<6",
        "peft>=0.21,<0.22",
        "accelerate>=1.10,<2",
        "deepspeed>=0.19,<0.20",
        "safetensors>=0.8,<1",
        "sentencepiece>=0.2,<0.3",
        "ftfy>=6.3.1,<7",
        "protobuf>=5.26,<8",
        "datasets>=4,<6",
        "av>=17.1,<19",
        "decord>=0.6,<0.7; platform_machine == 'x86_64'",
        "numpy>=2,<3",
        "scipy>=1.13,<2",
        "pillow>=11,<14",
        "pyyaml>=6.0.1,<7",
        "jinja2>=3.1,<4",
        "tensorboard>=2.18,<3",
        "tqdm>=4.66.3,<5",
    ],
    extras_require={
        "test": TEST,
        "docs": DOCS,
        "dev": [
            *TEST,
            *DOCS,
            "interrogate>=1.7,<2",
            "mypy>=2.4,<3",
            "pre-commit>=4,<5",
            "ruff>=0.17,<0.18",
        ],
        "plot": ["matplotlib>=3.10,<4"],
        "quantize": QUANTIZE,
        # Needs Pillow below 13: constraints-playground.txt has the versions that were tested.
        "playground": ["gradio>=6.31,<7"],
        "xformers": ["xformers>=0.0.35,<0.1"],
        "image-metrics": [
            "torch-fidelity>=0.4,<0.5",
            "open-clip-torch>=3.3,<4",
            "lpips>=0.1.4,<0.2",
        ],
        # Pins old packages, so it needs a separate environment: eval/setup_vbench.sh creates it.
        "vbench": ["vbench==0.1.5"],
    },
)
