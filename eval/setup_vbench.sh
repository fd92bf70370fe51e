#!/usr/bin/env bash
# Create VBench's environment, in .venv-vbench next to eval/ or in the given folder.
#   PYTHON=python3.11 eval/setup_vbench.sh [FOLDER]
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec bash "$here/../tdmvid/scoring/environment/setup_vbench.sh" "${1:-$here/../.venv-vbench}"
