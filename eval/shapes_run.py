"""Score samplers on the shapes world: the same as `tdmvid score shapes`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["score", "shapes", *sys.argv[1:]])
