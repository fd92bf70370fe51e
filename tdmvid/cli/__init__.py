"""Command line of `tdmvid`: `main`, and one module per command."""
