"""Keeps what a benchmark measured, with all that a reader needs to judge it: commit, machine and versions."""

import contextlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from narrows.ops import native

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# Of some two hundred flags, those that decide which kernels PyTorch and we can run.
INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)


def record(name: str, figures: Mapping[str, Any], *, notes: str = "") -> Path:
    """Write ``benchmarks/results/<name>.json`` and return its path.

    `figures` are plain JSON; what stands under ``"table"`` (``{"columns": [...], "rows": [[...]]}``), with a
    ``"caption"`` if there is one, is what documents show (see `benchmarks.tables`). `notes` is one line under the
    table: what was measured against what, and how.

    Raises ValueError for a name that is no file name, and for figures that JSON cannot hold exactly (NaN, tensors).
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ValueError(f"the name {name!r} of a result holds more than a-z, 0-9, - and _: choose a plain one")
    result = {
        "name": name,
        "figures": figures,
        "notes": notes,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **_commit(),
        "machine": _machine(),
        "versions": _versions(),
    }
    try:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False, indent=2, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the figures of {name!r} are not plain JSON ({error}): make them numbers") from error
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path


def _commit() -> dict[str, Any]:
    """The commit that was measured, and whether files differed from it; both None outside a repository.

    Results do not count as a difference, or every benchmark would taint the next one of the same run.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _machine() -> dict[str, Any]:
    flags = set(_cpuinfo("flags", "Features").split())
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags],
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
    }


def _cpuinfo(*keys: str) -> str:
    """The first value that Linux gives for one of `keys`; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() in keys), "")


def _versions() -> dict[str, str]:
    kernels = native.kernels.instruction_set() if native.available() else "none"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "our kernels": kernels}
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions["transformers"] = metadata.version("transformers")
    return versions
