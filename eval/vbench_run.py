"""Compute VBench of a student and its teacher: the same as `tdmvid score vbench`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["score", "vbench", *sys.argv[1:]])
