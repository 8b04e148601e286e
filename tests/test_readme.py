"""What README shows runs: its Python, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_readmes_python_runs_as_it_stands_there(tmp_path: Path) -> None:
    """One block behind the other in a process of their own, which ends without a word, an engine's threads or not."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    program = "token_ids = [0, 5, 6]\n" + "\n".join(blocks)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
