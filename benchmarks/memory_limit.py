"""Runs a command that may use only so much memory, the pages of mapped files included."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_limited(command: Sequence[str], memory: int) -> subprocess.CompletedProcess[str]:
    """Run a command whose processes together get at most so many bytes of memory -> what it wrote.

    In a control group of our own, below this process's, where version 1 has one that we may make; otherwise in a scope
    of systemd. OSError where neither is to be had; CalledProcessError if the command fails.
    """
    group = _group()
    if group is None:
        user = [] if os.geteuid() == 0 else ["--user"]
        scope = ["systemd-run", *user, "--scope", "--quiet", f"--property=MemoryMax={memory}"]
        if shutil.which(scope[0]) is None or not Path("/run/systemd/system").exists():
            raise OSError("there is no control group of version 1 and no systemd to limit memory with")
        return _run([*scope, "--property=MemorySwapMax=0", *command])
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(memory))
        # The shell enters the group and becomes the command.
        enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
        return _run([*enter, *command])
    finally:
        group.rmdir()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)


def _group() -> Path | None:
    """A new group's folder below that of this process."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        above = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
        if controllers == "memory" and os.access(above, os.W_OK):
            return above / f"narrows-{os.getpid()}"
    return None
