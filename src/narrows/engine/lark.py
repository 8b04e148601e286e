"""Pieces of the Lark text that llguidance compiles, and its reasons for refusing one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher

from narrows.errors import UsageError
from narrows.text.messages import to_json

# Room for a line break and a deep indent. Without a bound, a model that has lost its way writes spaces to its end.
_SPACING = {"whitespace_pattern": r"[ \t\r\n]{1,64}"}

# Any text; control tokens are no text to llguidance.
ANYTHING = "/(?s:.*)/"


def literal(text: str) -> str:
    """What matches `text` alone."""
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: Mapping[str, Any], owner: str) -> str:
    """What matches JSON values that satisfy `schema`, with at most 64 characters between two parts of a value.

    A schema's own "x-guidance" (llguidance's options) is used instead. UsageError, naming `owner`, for what is no JSON.
    """
    return checked(f"%json {to_json({'x-guidance': _SPACING, **schema}, owner)}", owner)


def check_schema(schema: Mapping[str, Any], owner: str) -> None:
    """UsageError, naming `owner` and with llguidance's reason, for a JSON schema that no grammar can keep to."""
    if message := LLMatcher.validate_grammar(f"start: {json_rule(schema, owner)}"):
        raise refused(owner, message)


def checked(text: str, owner: str) -> str:
    """`text`, which has to be UTF-8; UsageError, naming `owner`, where it cannot be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{owner} holds a lone surrogate, which no text can match; remove it.") from None
    return text


def refused(owner: str, message: str) -> UsageError:
    """llguidance's refusal of `owner`, on one line: without the excerpts of the grammar that it points into."""
    before_excerpt = re.split(r"\n +\d+ \| ", message)[0]
    lines = (line.strip() for line in re.sub(r"^at .*failed to compile JSON schema: ", "", before_excerpt).splitlines())
    reason = " ".join(line for line in lines if line.strip("^ "))
    return UsageError(f"{owner} cannot constrain a reply ({reason}); change it, or ask without it.")
