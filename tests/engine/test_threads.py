"""Whose threads work: while the kernels decode, PyTorch's must not, for they look for more work for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from narrows.ops import native

# Counts how often OpenMP's threads are called to work.
COUNTING = """
#define _GNU_SOURCE
#include <dlfcn.h>
int regions = 0;
void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags) {
    static void (*real)(void (*)(void *), void *, unsigned, unsigned);
    if (!real) real = dlsym(RTLD_NEXT, "GOMP_parallel");
    ++regions;
    real(work, data, threads, flags);
}
"""
DECODING = """
import ctypes, sys, torch
torch.set_num_threads(2)
import narrows
from narrows.engine.core import Core
from narrows.engine.sequence import Drawn, Request

regions = ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "regions")
model = narrows.load("embedded")
core = Core(model.network, None, narrows.Limits(memory=1 << 28, slots=6, drafts=3, draft_rate=0.0))
never_ends = {model.config.eos_token_id: -100.0}
for seed in range(6):
    wanted = narrows.SamplingParameters(max_tokens=96, temperature=0.8, seed=seed, logit_bias=never_ends)
    core.submit(Request(tuple(range(10 + seed, 70)), wanted))
drawn = 0
while drawn < 6:
    drawn += sum(isinstance(event, Drawn) for event in core.step())
regions.value = 0
while not core.idle:
    drawn += sum(isinstance(event, Drawn) for event in core.step())
print(drawn, core.stats.drafted > 0, regions.value)
torch.ones(8, 4, 1024)[torch.arange(8)]
print(regions.value)
"""


def test_decoding_calls_none_of_pytorchs_threads(tmp_path: Path) -> None:
    """Six requests at once, each with drafts, longer than a block."""
    if not native.available():
        pytest.skip("the kernels are not built")
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and a loader that lets a library stand before another")
    source, library = tmp_path / "counting.c", tmp_path / "counting.so"
    source.write_text(COUNTING)
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", DECODING, str(library)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    decoding, afterwards = done.stdout.splitlines()
    if afterwards == "0":
        pytest.skip("this PyTorch was built with another OpenMP")
    assert decoding == f"{6 * 96} True 0"
