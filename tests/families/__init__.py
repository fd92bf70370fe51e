"""Tiny random pipelines for the contract tests, one module per family.

A module defines PIPELINE (the pipeline class), VARIANTS (names of the layouts that the family's
configs can ask for), SIZE (the ClipSize that the tiny pipelines generate), `build(variant)` (a
random pipeline of the real classes) and `encoded(pipeline, prompts)` (two dicts: what the pipeline
itself encodes the prompts to, and the empty prompt). Optional: `unpacked(x)`, `prepare(pipeline)`
(settings of the stock pipeline for two samples) and TOO_MANY_WORDS (above the limit of prompts).
"""

import importlib
import pkgutil

BUILDERS = {
    module.PIPELINE: module
    for module in (
        importlib.import_module(f"{__name__}.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    )
}
