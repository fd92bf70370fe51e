#!/usr/bin/env bash
# Makes VBench's environment, .venv-vbench beside eval/ or in the folder that is named.
#   PYTHON=python3.11 eval/setup_vbench.sh [FOLDER]
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec bash "$here/../tdmvid/scoring/environment/setup_vbench.sh" "${1:-$here/../.venv-vbench}"
