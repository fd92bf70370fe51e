"""Distil a teacher into a few-step student: the same as `tdmvid train`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
