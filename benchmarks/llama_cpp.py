"""llama.cpp as a peer: built here once from what PyPI has of it, given our weights, and timed.

Its source comes inside llama-cpp-python's source distribution. Where the environment's LLAMA_CPP names a folder of
llama.cpp with a build in it, that one is taken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from narrows.checkpoints.cache_folder import cache_folder
from narrows.checkpoints.checkpoint import Checkpoint
from narrows.checkpoints.write import Plan, write_checkpoint
from narrows.errors import NarrowsError
from narrows.model.precision import Precision

VERSION = "0.3.36"
"""Of llama-cpp-python: the first releases have no DeepSeek-V4, and figures of different ones do not compare."""

_ROOT = Path(__file__).resolve().parents[1]
_PROGRAMS = ("llama-bench", "llama-completion", "llama-quantize")
_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "GGML_OPENMP": "ON",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
}
# llama-bench warms up with a whole run; one of many thousand tokens changes nothing but the time that it takes.
_WARMED_UP = 2_048

FileType = Literal["F32", "BF16", "Q8_0"]


@dataclass(frozen=True)
class Binaries:
    """llama.cpp's `source` folder, and its programs."""

    source: Path
    bench: Path
    completion: Path
    quantize: Path


def binaries(folder: Path | None = None) -> Binaries:
    """LLAMA_CPP's programs, or those in `folder`, which are fetched and built if they are not there (minutes).

    Without a folder they are in our cache folder, under benchmarks/llama_cpp.

    NarrowsError if LLAMA_CPP has no build, or if fetching or building fails.
    """
    if named := os.environ.get("LLAMA_CPP"):
        source = Path(named).expanduser().resolve()
    else:
        folder = folder or cache_folder("benchmarks") / "llama_cpp"
        source = folder / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
        _build(folder, source)
    programs = [source / "build" / "bin" / name for name in _PROGRAMS]
    for program in programs:
        if not program.is_file():
            raise NarrowsError(f"{program} is absent; build it there, or unset LLAMA_CPP to have it built.")
    return Binaries(source, *programs)


def described() -> str:
    """Which llama.cpp this is."""
    return "of a build of one's own" if os.environ.get("LLAMA_CPP") else f"of llama-cpp-python {VERSION}"


def gguf(model: Path, folder: Path, stored: FileType) -> Path:
    """The model of the directory `model` as a file for llama.cpp, its matrices in this type.

    Written into `folder`, which is for this model alone, and kept there. A Q8_0 file is made of the BF16 one.
    NarrowsError if a conversion fails.
    """
    target = folder / f"{stored}.gguf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{stored}.part"
    programs = binaries()
    if stored == "Q8_0":
        _run([programs.quantize, gguf(model, folder, "BF16"), unfinished, stored])
    else:
        # The converter keeps float32 what is float32, so the rounding is done here.
        precision = Precision.FLOAT32 if stored == "F32" else Precision.BF16
        checkpoint = folder / precision
        if not checkpoint.exists():
            source = Checkpoint(model)
            write_checkpoint(source, Plan(source, precision), checkpoint)
        modules = os.pathsep.join(map(str, (programs.source, programs.source / "gguf-py")))
        command = [sys.executable, "-m", "benchmarks.llama_cpp_convert", checkpoint, unfinished]
        _run(command, cwd=_ROOT, env={**os.environ, "PYTHONPATH": modules})
    unfinished.replace(target)
    return target


def bench(file: Path, *, threads: int, cache: str, prompt: int = 0, depth: int = 0, generate: int = 0) -> float:
    """Tokens a second of one run of llama-bench: of a prompt's prefill, or of decoding behind `depth` tokens.

    One of `prompt` and `generate` is 0. `cache`: its type, as llama-bench names it. The tokens are random and nothing
    is sampled; flash attention is on, which is faster. NarrowsError if the run fails.
    """
    command: list[object] = [binaries().bench, "-o", "json", "-r", 1, "-m", file, "-t", threads]
    command += ["-fa", "on", "-ctk", cache, "-ctv", cache, "-p", prompt, "-n", generate, "-d", depth]
    if prompt > _WARMED_UP:
        command.append("--no-warmup")
    (result,) = json.loads(_run(command))
    return float(result["avg_ts"])


def _build(folder: Path, source: Path) -> None:
    """Fetch the source into `folder` and build what is needed of it; what is there already is kept."""
    built = folder / f"built-{VERSION}"
    if built.exists():
        return
    print(f"building llama.cpp in {folder}, once (minutes)", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    tools = folder / "venv" / "bin"
    _run([sys.executable, "-m", "venv", tools.parent])
    # pip asks the distribution's own build system for its name, hence scikit-build-core.
    _run([tools / "pip", "install", "-q", "cmake", "ninja", "scikit-build-core"])
    name = "llama-cpp-python"
    only = ["--no-deps", "--no-build-isolation", "--no-binary", name, "-d", folder]
    _run([tools / "pip", "download", "-q", *only, f"{name}=={VERSION}"])
    with tarfile.open(folder / f"llama_cpp_python-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    found = f"{tools}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": found}
    options = [f"-D{key}={value}" for key, value in _OPTIONS.items()]
    build = source / "build"
    _run([tools / "cmake", "-S", source, "-B", build, "-G", "Ninja", *options], env=environment)
    _run([tools / "cmake", "--build", build, "--target", *_PROGRAMS], env=environment)
    built.touch()


def _run(command: Sequence[object], **how: Any) -> str:
    """What a program printed. NarrowsError with its last words if it failed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **how)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise NarrowsError(f"{' '.join(words)} failed with exit code {done.returncode}: {said}")
    return done.stdout
