"""Programs other than diffusers that load a student's LoRA, one file per program."""

from .base import Consumer, check_formats, check_known, consumers, register

__all__ = ["Consumer", "check_formats", "check_known", "consumers", "register"]
