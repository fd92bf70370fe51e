"""Time a student and its teacher: the same as `tdmvid latency`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["latency", *sys.argv[1:]])
