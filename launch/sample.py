"""Sample prompts with a teacher or a few-step student: the same as `tdmvid sample`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
