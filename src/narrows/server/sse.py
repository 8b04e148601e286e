"""Server-sent events (WHATWG HTML, 9.2) as text."""

from __future__ import annotations

import json
from typing import Any


def event(data: Any, name: str | None = None) -> str:
    """One event with JSON data. ASCII alone: some readers take other line ends than the standard's for one."""
    text = f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
    return text if name is None else f"event: {name}\n{text}"


def comment(text: str) -> str:
    """What readers skip, and what tells everybody between that the connection lives."""
    return f": {text}\n\n"
