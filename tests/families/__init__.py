"""Tiny random pipelines for the contract tests, one module a family.

A module has PIPELINE (the pipeline class it stands for), VARIANTS (names of the layouts that
the family's configs can ask for), SIZE (a ClipSize that the tiny pipelines generate),
`build(variant)` (a random pipeline of the real classes) and `encoded(pipeline, prompts)`
(what the pipeline itself makes of prompts: two dicts, of the prompts and of no prompt).
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
