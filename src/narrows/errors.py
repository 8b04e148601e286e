"""The one error that the command line shows without a traceback."""


class NarrowsError(Exception):
    """A failure that its reader can act on: one sentence that names the thing that is wrong and what to do."""


class UsageError(NarrowsError):
    """The request itself cannot be right, whatever the files hold; the command line exits with 2 instead of 1."""
