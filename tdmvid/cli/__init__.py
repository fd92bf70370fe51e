"""The command line: `tdmvid train`, `plan`, `sample`, `embed`, `export`, `score`, `study`, `latency`."""
