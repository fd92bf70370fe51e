"""Programs other than diffusers that load a student's LoRA, one file a program."""

from .base import Consumer, check_formats, consumers, register

__all__ = ["Consumer", "check_formats", "consumers", "register"]
