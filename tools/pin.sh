#!/bin/sh
# Writes constraints.txt: what pip chooses today for narrows[dev] in a fresh environment, with PyTorch held fixed.
set -eu
cd "$(dirname "$0")/.."

torch=2.13.0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$PYTHON" -m venv "$scratch"
"$scratch/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$torch" -e '.[dev]'
{
    echo '# The exact versions that `make` installs. Written by `make constraints`.'
    # A local part such as +cpu names a build, and other builds of the same version serve as well.
    "$scratch/bin/python" -m pip freeze --all --exclude pip --exclude-editable | sed 's/+.*//' | LC_ALL=C sort -f
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
