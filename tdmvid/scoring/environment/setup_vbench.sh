#!/usr/bin/env bash
# Makes the environment that scores with the real VBench package: about 6.5 GB.
#
#   eval/setup_vbench.sh                    # in a clone: .venv-vbench beside eval/
#   bash .../tdmvid/scoring/environment/setup_vbench.sh .venv-vbench     # of an installed package
#   PYTHON=python3.11 eval/setup_vbench.sh /scratch/venv-vbench
#
# Pip prefers wheels without CUDA, much smaller, where its indexes hold them (PIP_EXTRA_INDEX_URL).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
folder="${1:-.venv-vbench}"

fits() { "$1" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null; }
python="${PYTHON:-}"
for found in ${PYTHON:-python3 python3.11 python3.10 python3.9}; do
    if fits "$found"; then python="$found" && break; fi
done
fits "${python:-python3}" || {
    echo "error: ${python:-python3} is $("${python:-python3}" --version 2>&1): VBench's pinned packages have wheels for Python 3.9 to 3.11, set PYTHON to one" >&2
    exit 1
}
test -x "$folder/bin/python" || "$python" -m venv "$folder"
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$here/vbench_constraints.txt" "$@"; }
install setuptools wheel # some of the packages build with the environment's own
install --requirement "$here/vbench_requirements.txt"
"$folder/bin/python" -m pip check
"$folder/bin/python" -W ignore -c 'import vbench'
echo "$folder"
