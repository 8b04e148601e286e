"""How llama.cpp is found and asked; programs that stand for it say what they were asked for."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import llama_cpp
from narrows.errors import NarrowsError

ANSWER = f"""#!{sys.executable}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if options["-m"] == "broken":
    sys.exit("this is no model")
print(json.dumps([{{"avg_ts": float(options["-p"]) + float(options["-n"]) / 10 + float(options["-d"]) / 10_000}}]))
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of llama.cpp with programs, which LLAMA_CPP names."""
    programs = tmp_path / "build" / "bin"
    programs.mkdir(parents=True)
    for name in ("llama-bench", "llama-completion", "llama-quantize"):
        (programs / name).write_text(ANSWER)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    return tmp_path


def test_the_build_that_the_environment_names_is_taken(source: Path, tmp_path: Path) -> None:
    found = llama_cpp.binaries(tmp_path / "cache")
    assert found.source == source
    assert found.quantize == source / "build" / "bin" / "llama-quantize"
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_a_build_is_named(source: Path) -> None:
    (source / "build" / "bin" / "llama-quantize").unlink()
    with pytest.raises(NarrowsError, match=r"bin/llama-quantize is absent; build it there, or unset LLAMA_CPP"):
        llama_cpp.binaries()


@pytest.mark.skipif(os.name != "posix", reason="the programs are scripts")
def test_a_run_is_one_prompt_or_one_decode_and_a_failure_is_told(source: Path) -> None:
    assert llama_cpp.bench(Path("model"), threads=2, cache="f16", prompt=512) == 512
    assert llama_cpp.bench(Path("model"), threads=2, cache="f16", prompt=65_536) == 65_536
    assert llama_cpp.bench(Path("model"), threads=2, cache="f16", depth=512, generate=64) == 6.4512
    with pytest.raises(NarrowsError, match="failed with exit code 1: this is no model"):
        llama_cpp.bench(Path("broken"), threads=2, cache="f16", prompt=512)


def test_a_file_that_is_there_is_not_made_again(source: Path, tmp_path: Path) -> None:
    (tmp_path / "Q8_0.gguf").write_text(json.dumps("made before"))
    assert llama_cpp.gguf(tmp_path / "absent", tmp_path, "Q8_0") == tmp_path / "Q8_0.gguf"
