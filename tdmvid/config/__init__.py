"""Settings of a run and the rules between them, read from one JSON file.

This package imports only the standard library, so a misspelt setting is reported immediately.
"""

from .batch import global_batch, share_batch
from .data import BatchConfig, PromptConfig, RealConfig
from .evaluation import EvaluateConfig, ImageConfig, TeacherSampling, VBenchConfig
from .grid import GridConfig
from .guard import ExportConfig, GuardConfig
from .log import LogConfig
from .lora import LoraSettings
from .model import AdapterSettings, ClipSize, ModelConfig, QuantizeKind
from .objectives import (
    DMD2Settings,
    FisherSettings,
    GANSettings,
    ObjectiveSettings,
    TDMSettings,
    objective_settings,
    register_settings,
)
from .optim import OptimConfig
from .parallel import ParallelConfig
from .parse import from_dict, load_config, override, read_settings, to_dict
from .ranges import check_number, check_options
from .rewards import RewardConfig, decoded_frames, names_of
from .rules import Rule, at_least, check_rules, short
from .run import RunConfig

__all__ = [
    "AdapterSettings",
    "BatchConfig",
    "ClipSize",
    "DMD2Settings",
    "EvaluateConfig",
    "ExportConfig",
    "FisherSettings",
    "GANSettings",
    "GridConfig",
    "GuardConfig",
    "ImageConfig",
    "LogConfig",
    "LoraSettings",
    "ModelConfig",
    "ObjectiveSettings",
    "OptimConfig",
    "ParallelConfig",
    "PromptConfig",
    "QuantizeKind",
    "RealConfig",
    "RewardConfig",
    "Rule",
    "RunConfig",
    "TDMSettings",
    "TeacherSampling",
    "VBenchConfig",
    "at_least",
    "check_number",
    "check_options",
    "check_rules",
    "decoded_frames",
    "from_dict",
    "global_batch",
    "load_config",
    "names_of",
    "objective_settings",
    "override",
    "read_settings",
    "register_settings",
    "share_batch",
    "short",
    "to_dict",
]
