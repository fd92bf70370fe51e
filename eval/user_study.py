"""Make a blind A/B study, or count its votes: the same as `tdmvid study`."""

import sys

from tdmvid.cli.main import main

if __name__ == "__main__":
    main(["study", *sys.argv[1:]])
