#!/bin/sh
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs their tests on them; what these find
# ends the run. The installed module makes way for the time of the run.
#
#   VENV=.venv tools/sanitize.sh [TEST...]
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
build=build/sanitized
python=$venv/bin/python

[ -x "$build/tools/bin/cmake" ] || {
    "$python" -m venv "$build/tools"
    "$build/tools/bin/pip" install --quiet cmake nanobind ninja
}
"$build/tools/bin/cmake" -S native -B "$build/objects" -G Ninja -DNARROWS_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug \
    -DPython_EXECUTABLE="$PWD/$build/tools/bin/python" -DCMAKE_MAKE_PROGRAM="$PWD/$build/tools/bin/ninja" >/dev/null
"$build/tools/bin/cmake" --build "$build/objects"

installed=$("$python" -c 'import narrows.ops._native as module; print(module.__file__)')
kept=$installed.kept
trap 'mv "$kept" "$installed"' EXIT
trap 'exit 130' INT
mv "$installed" "$kept"
cp "$build"/objects/_native*.so "$installed"

[ $# -gt 0 ] || set -- tests/ops/test_native.py tests/ops/test_native_attention.py tests/ops/test_native_inference.py \
    tests/ops/test_native_fuzz.py tests/model/test_native_network.py tests/checkpoints/test_prefetch.py
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2 \
    "$python" -m pytest -q -s -n 0 -p no:faulthandler "$@"
