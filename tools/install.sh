#!/bin/sh
# Makes the virtual environment where it is missing, and installs the package into it against constraints.txt.
#
#   VENV=.venv PYTHON=python3 TORCH= tools/install.sh '' STAMP...       the package alone
#   VENV=.venv PYTHON=python3 TORCH= tools/install.sh '[dev]' STAMP...  with what tests and checks need
#
# The stamps are touched last, when all is in place. TORCH=cpu asks PyTorch's own index for the build without CUDA.
set -eu
trap 'exit 130' INT  # pip exits in good order when interrupted; without this the script would go on
cd "$(dirname "$0")/.."

extras=$1
shift
cpu_index=https://download.pytorch.org/whl/cpu
unfinished=$VENV/.unfinished

case $TORCH in
'' | cpu) ;;
*) echo "TORCH=$TORCH is not known: write TORCH=cpu for the build without CUDA, or leave it out." >&2 && exit 2 ;;
esac

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    found=$("$PYTHON" --version 2>&1) || found="not found"
    echo "Narrows needs Python 3.11 or newer, and $PYTHON is $found: name one, as in make run PYTHON=python3.12" >&2
    exit 2
fi

pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip "$@"
}

# An install that was cut off may leave half a package that pip takes for whole, so it is begun again from nothing.
if [ -e "$unfinished" ] || ! pip --version >/dev/null 2>&1; then
    echo "making the virtual environment $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
fi
touch "$unfinished"

if [ "$TORCH" = cpu ]; then
    echo "installing PyTorch's CPU build from $cpu_index (once)"
    if ! said=$(pip install --quiet --no-deps --timeout 5 --retries 0 \
        --index-url "$cpu_index" -c constraints.txt torch 2>&1); then
        echo "that failed, and PyTorch will come from the default index; pip said:" >&2
        echo "$said" | sed 's/^/    /' >&2
    fi
fi

echo "installing narrows$extras into $VENV (once, and when native/ changes; PyTorch is large, so this may take minutes)"
pip install --quiet -c constraints.txt -e ".$extras"

if ! "$VENV/bin/python" -c 'import narrows.ops._native' 2>/dev/null; then
    echo "the C++ kernels could not be compiled: everything works without them, ten times slower." >&2
    echo "With a compiler, make clean and the same again compiles them." >&2
    echo "$VENV/bin/python -m pip install -v -e . shows why." >&2
fi

rm "$unfinished"
touch "$@"
