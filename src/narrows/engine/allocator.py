"""Memory that a step used and freed, back to the system."""

from __future__ import annotations

import ctypes
import sys

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def return_free_memory() -> None:
    """Let the C library give back what it holds for nobody; where that is not glibc, nothing happens.

    A long prompt's temporary tensors change their sizes from step to step, and what is freed fits what is asked for
    less and less: without this a process keeps many times the history that it was computing.
    """
    if _trim is not None:
        _trim(ctypes.c_size_t(0))
