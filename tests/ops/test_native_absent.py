"""Where there are no kernels, for what reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import importlib.util, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "narrows.ops._native":
            return importlib.util.spec_from_file_location(name, sys.argv[1])

MODULE
from narrows.model.native_network import why_not
from narrows.model.presets import TINY
print(why_not(TINY))
"""


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("sys.modules['narrows.ops._native'] = None", "installed without a compiler"),
        ("sys.meta_path.insert(0, Finder)", "the compiled module cannot be loaded: ...file too short"),
    ],
)
def test_why_there_are_no_kernels_is_said(module: str, said: str, tmp_path: Path) -> None:
    broken = tmp_path / "_native.so"
    broken.touch()
    command = [sys.executable, "-c", CODE.replace("MODULE", module), str(broken)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert all(part in done.stdout for part in said.split("...")), done.stdout
