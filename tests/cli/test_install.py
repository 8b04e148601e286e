"""tools/install.sh: what pip says when it fails reaches the reader, and what an install lacks."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools/install.sh"

# Stands for the virtual environment's Python: pip is there, and can neither install from PyTorch's own index nor
# compile.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*narrows.ops._native*) exit 1 ;;
*--index-url*) echo 'ERROR: No matching distribution found for torch' >&2; exit 1 ;;
esac
"""


def test_what_was_not_installed_is_told(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    stamp = tmp_path / "stamp"
    environment = os.environ | {"VENV": str(tmp_path / "venv"), "PYTHON": sys.executable, "TORCH": "cpu"}
    done = subprocess.run(["sh", SCRIPT, "", stamp], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ERROR: No matching distribution found for torch" in done.stderr
    assert "PyTorch will come from the default index" in done.stderr
    assert "cannot be reached" not in done.stdout + done.stderr
    assert "the C++ kernels could not be compiled" in done.stderr
    assert stamp.exists()
