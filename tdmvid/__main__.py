"""Run the command line as a module: `torchrun --nproc_per_node 8 -m tdmvid train --config ...`."""

from .cli.main import main

if __name__ == "__main__":
    main()
