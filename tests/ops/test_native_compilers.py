"""What the kernels are written in is every compiler's, not only that of who installed the package."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
FLAGS = {
    isa: flags.split()
    for isa, flags in re.findall(r"^ *kernels\((\w+)([^)]*)\)", (NATIVE / "CMakeLists.txt").read_text(), re.MULTILINE)
}


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("isa", FLAGS)
def test_kernels_are_sound_to_a_compiler(compiler: str, isa: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here")
    if isa != "portable" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{isa} is of another machine")
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-DNARROWS_ISA={isa}", *FLAGS[isa], "kernels.cpp"]
    done = subprocess.run(command, cwd=NATIVE, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[:3000]
