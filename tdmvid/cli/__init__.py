"""The command line `tdmvid`: a module for each of its commands, and main."""
