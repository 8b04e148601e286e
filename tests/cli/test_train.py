"""`narrows train`: a recipe and a corpus to a model that loads."""

import subprocess
import sys
from pathlib import Path

import pytest

import narrows
from tests.training.corpora import RECIPE, write_corpus

WITHOUT_KERNELS = "sys.modules['narrows.ops._native'] = None"  # as where there was no compiler


@pytest.mark.parametrize("kernels", [True, False])
def test_a_model_is_trained_and_missing_kernels_are_mentioned_once(tmp_path: Path, kernels: bool) -> None:
    if kernels:
        pytest.importorskip("narrows.ops._native", reason="narrows was installed without a C++ compiler")
    write_corpus(tmp_path / "corpus")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("steps = 10", "steps = 2"))
    code = f"import sys; {'' if kernels else WITHOUT_KERNELS}\nfrom narrows.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", tmp_path / "recipe.toml", "-d", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = "slower without the kernels (the package was installed without a compiler; install one, and narrows again)"
    assert done.stderr.count(said) == (0 if kernels else 1)
    assert narrows.load(tmp_path / "run/model").config.trained_context == 64
