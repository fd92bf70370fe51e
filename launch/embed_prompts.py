"""Embed a run's prompts ahead of training: the same as `tdmvid embed`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
