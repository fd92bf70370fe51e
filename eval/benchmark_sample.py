"""Sample a public benchmark's prompts for its own scorer: the same as `tdmvid benchmark`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
