"""How many inputs hypothesis draws for a property: enough to learn something in `make test`, many in `make soak`."""

import os


def draws() -> int:
    """40 examples in `make test`, 400 in `make soak` (which sets NARROWS_SOAK=1); for `settings(max_examples=...)`."""
    return 400 if os.environ.get("NARROWS_SOAK") == "1" else 40
