"""Write a checked bundle of a student: the same as `tdmvid export`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
