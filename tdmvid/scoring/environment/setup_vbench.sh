#!/usr/bin/env bash
# Create the Python environment for the VBench package (about 6.5 GB).
#
#   eval/setup_vbench.sh                    # in a clone: creates .venv-vbench next to eval/
#   bash .../tdmvid/scoring/environment/setup_vbench.sh .venv-vbench     # for an installed package
#   PYTHON=python3.11 eval/setup_vbench.sh /scratch/venv-vbench
#
# pip takes the much smaller wheels without CUDA if its indexes have them (PIP_EXTRA_INDEX_URL).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-.venv-vbench}"

fits() { "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null; }
python="${PYTHON:-}"
for found in ${PYTHON:-python3 python3.11 python3.10 python3.9}; do
    if fits "$found"; then python="$found" && break; fi
done
fits "${python:-python3}" || {
    echo "error: ${python:-python3} is $("${python:-python3}" --version 2>&1): VBench's pinned packages have wheels for Python 3.9 to 3.11; set PYTHON to one of these" >&2
    exit 1
}
test -x "$folder/bin/python" || "$python" -m venv "$folder"
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$here/vbench_constraints.txt" "$@"; }
install setuptools wheel # some packages build with the environment's own setuptools
install --requirement "$here/vbench_requirements.txt"
"$folder/bin/python" -m pip check
"$folder/bin/python" -W ignore -c 'import vbench'
echo "$folder"
