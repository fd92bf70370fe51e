"""Compute image metrics of a student and its teacher: the same as `tdmvid score images`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["score", "images", *sys.argv[1:]])
