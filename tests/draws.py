"""How many inputs hypothesis draws for a property: enough to learn something in `make test`, many in `make soak`."""

import os
import secrets

SOAK = os.environ.get("NARROWS_SOAK") == "1"


def scaled(examples: int) -> int:
    """As many examples in `make test`, ten times as many in `make soak` (which sets NARROWS_SOAK=1).

    For `settings(max_examples=scaled(...))` where the 40 of `draws()` would take too long; a bare number would hold
    in the soak as well.
    """
    return 10 * examples if SOAK else examples


def draws() -> int:
    """What a property gets that says nothing else: 40 examples, 400 in the soak."""
    return scaled(40)


def occasion() -> str:
    """What sets one run's draws apart from another's: nothing in `make test`, something new in every soak.

    NARROWS_OCCASION repeats the draws of a soak that failed and told its occasion.
    """
    return os.environ.get("NARROWS_OCCASION") or (secrets.token_hex(8) if SOAK else "")
