"""The door of the `narrows` command: whatever fails behind it becomes one line and an exit code.

0: done. 1: a failure. 2: a request that cannot be right. 130: interrupted, from the first import on.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import TextIO


def main() -> None:
    """Entry point of the console script."""
    try:
        code = _run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run() -> int:
    output_is_closed = sys.stdout is None
    _open_missing_streams()
    if output_is_closed:
        return _fail("standard output is closed; leave it open, or send it to a file.", 1)
    if "train" not in sys.argv[1:2]:
        # PyTorch's threads would look for work on the kernels' cores. Training has no others.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # an encoding may lack what is to be written
    from narrows.errors import NarrowsError, UsageError

    try:
        from narrows.cli.app import CommandLineError, app

        try:
            code = app(prog_name="narrows", standalone_mode=False)
            sys.stdout.flush()
        except CommandLineError as error:
            said = " ".join(error.format_message().split()).rstrip(".")
            command = error.ctx.command_path if getattr(error, "ctx", None) else "narrows"
            return _fail(f"{said[:1].lower()}{said[1:]}; see {command} --help.", 2)
    except NarrowsError as error:
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        _abandon(sys.stdout)
        if error.errno == errno.EPIPE:  # its reader has seen enough
            return 1
        what = error.filename or "reading or writing"
        return _fail(f"{what} failed ({error.strerror or error}); check the disk, the path and its permissions.", 1)
    return code if isinstance(code, int) else 0


def _fail(sentence: str, code: int) -> int:
    from narrows.cli.output import visible

    try:
        print(f"narrows: {visible(sentence, one_line=True)}", file=sys.stderr, flush=True)
    except OSError:
        _abandon(sys.stderr)
    return code


def _open_missing_streams() -> None:
    """Closed ones are None, and the next file opened would take their number. In order, so that each gets its own."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives


def _abandon(stream: TextIO) -> None:
    """Let what is still buffered for it go nowhere, where it would fail once more when Python ends."""
    with suppress(OSError, ValueError):  # if it is one of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
