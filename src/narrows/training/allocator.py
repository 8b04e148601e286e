"""Large tensors without page faults."""

from __future__ import annotations

import ctypes
import mmap
import os

# glibc's mallopt parameters, from its malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_RESERVE = 8 << 30


def keep_large_allocations() -> None:
    """Let the process keep freed memory instead of handing it back: training frees and asks for the same sizes.

    With glibc's defaults every large tensor is mapped afresh, and clearing its pages costs more than filling it. So
    the heap keeps what it once had, and a part of its address space, not yet of memory, is set up for pages of 2 MB.
    On other C libraries nothing happens.
    """
    library = ctypes.CDLL(None)
    mallopt, madvise = getattr(library, "mallopt", None), getattr(library, "madvise", None)
    if mallopt is None or madvise is None:
        return
    mallopt(_MMAP_THRESHOLD, (1 << 31) - 1)
    mallopt(_TRIM_THRESHOLD, -1)  # never
    mallopt(_TOP_PAD, 1 << 26)
    library.malloc.restype = ctypes.c_void_p
    reserve = min(_LARGEST_RESERVE, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    # An int of mallopt's cannot say "never map": pieces below 2 GB come from the heap, and together they are one range.
    piece = (1 << 31) - (1 << 20)
    pieces = [address for _ in range(reserve // piece) if (address := library.malloc(ctypes.c_size_t(piece)))]
    for address in pieces:
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (address + piece - start) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    for address in reversed(pieces):
        library.free(ctypes.c_void_p(address))
